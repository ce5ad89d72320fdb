/* The floor of a local fault: a store to an absent page of a memfd, served by a thread of the same process.
 *
 * Each line on standard input is a number of faults; the answer is a line of nanoseconds, one for each. Exits with a
 * line on standard error where userfaultfd is not to be had. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW /* headers older than Linux 6.1 */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
enum { PAGE = 4096, PAGES = 1024 };
static char content[PAGE] __attribute__((aligned(PAGE)));

static void check(int fine, const char *what)
{
	if (!fine) {
		perror(what);
		exit(1);
	}
}

static void *serve(void *argument)
{
	int uffd = *(int *)argument;
	struct uffd_msg event;
	while (read(uffd, &event, sizeof event) == sizeof event) {
		struct uffdio_copy copy = {
			.dst = event.arg.pagefault.address & -(__u64)PAGE, .src = (__u64)content, .len = PAGE };
		check(ioctl(uffd, UFFDIO_COPY, &copy) == 0, "UFFDIO_COPY");
	}
	return NULL;
}

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(void)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), count;
	int uffd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC) : syscall(SYS_userfaultfd, O_CLOEXEC);
	check(uffd >= 0, "userfaultfd");
	int memfd = memfd_create("floor", MFD_CLOEXEC);
	check(memfd >= 0 && ftruncate(memfd, PAGE * PAGES) == 0, "memfd_create");
	char *pages = mmap(NULL, PAGE * PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	check(pages != MAP_FAILED, "mmap");
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .range = { (__u64)pages, PAGE * PAGES }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	check(ioctl(uffd, UFFDIO_API, &api) == 0 && ioctl(uffd, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
	pthread_t server;
	check(pthread_create(&server, NULL, serve, &uffd) == 0, "pthread_create");
	while (scanf("%d", &count) == 1 && count <= PAGES) {
		for (int page = 0; page < count; page++) {
			long long start = now();
			((volatile char *)pages)[page * PAGE] = 1;
			printf("%lld ", now() - start);
		}
		printf("\n");
		fflush(stdout);
		check(madvise(pages, PAGE * PAGES, MADV_REMOVE) == 0, "MADV_REMOVE");
	}
	return 0;
}
