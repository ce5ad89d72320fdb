"""What dsm needs of this host, checked one by one, each failure with the one command that mends it.

Most checks are functions of the facts they judge; :func:`examine` gathers the facts. Nothing is printed here.

Not checked, because dsm does not depend on it: the limit on locked memory (nothing is locked) and the size of /dev/shm
(a memfd does not count there).
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import resource
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from dsm import local, memory, poller, uffd
from dsm.constants import CONNECT_TIMEOUT_S, PAGE_BYTES
from dsm.errors import DsmError, RegionTooLarge, UserfaultfdUnavailable

KERNEL_MIN: Final = (6, 8)
"""What is used had come by 6.6; nobody runs the tests on anything older than 6.8."""
PYTHON_MIN: Final = (3, 11)
PACKAGES: Final[Mapping[str, tuple[str, tuple[int, ...]]]] = {
    "msgpack": ("msgpack", (1, 0, 5)),
    "numpy": ("numpy", (1, 25)),
}
"""By the name to install: the name to import, and the lowest version (as in pyproject.toml)."""

FILES_MIN: Final = 1024
FILES_PER_ATTACHMENT: Final = 3
"""A connection, a memfd and a userfaultfd, in the application as in the node."""
REGION_BYTES: Final = 1 << 40
"""A region of 1 TiB must attach at once: it costs address space, not memory."""
COMMIT_BYTES_MIN: Final = 1 << 30
"""Where the kernel counts every page against a commit limit, this much should be left of it."""

FAULT_PATH: Final = (
    "interpreted (an editable installation, or one without a C compiler): correct, and slower than compiled",
    "compiled",
)

_DEVICE_OPTION: Final = f"docker run --device {uffd.DEVICE} ..."
_GROUP: Final = f"sudo chgrp $(id -g) {uffd.DEVICE} && sudo chmod g+rw {uffd.DEVICE}"
_SYSCTL: Final = Path("/proc/sys/vm/unprivileged_userfaultfd")
_MARKS: Final = {"/.dockerenv": "Docker", "/run/.containerenv": "Podman"}
_CGROUP_MARK: Final = re.compile(r"docker|kubepods|containerd|libpod|lxc")


class Check(NamedTuple):
    """One requirement. ``fix``: the command that mends it, to be pasted into a shell; empty where ``ok``."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def examine() -> list[Check]:
    """Every check, on this host, for this user."""
    return [*_kernel_checks(), *_memory_checks(), *_program_checks()]


def _kernel_checks() -> Iterator[Check]:
    machine, host = os.uname(), container()
    upgrade = kernel_fix(_operating_system(), host)
    yield kernel(machine.release, upgrade)
    yield processor(machine.machine, sys.maxsize, os.sysconf("SC_PAGE_SIZE"))
    yield Check("container", True, f"{host}: userfaultfd comes in by --device {uffd.DEVICE}" if host else "none")
    device, offered = _probe()
    yield userfaultfd(offered, device, _access_fix(host) or upgrade)
    if isinstance(offered, frozenset):
        yield features(offered, upgrade)
    refusal, file_limit = _memfd_refusal(), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    yield memory_file(refusal, upgrade if file_limit == resource.RLIM_INFINITY else _raise("fsize", "unlimited"))
    if not refusal:
        yield huge_pages(memory.fills_single_pages())


def _memory_checks() -> Iterator[Check]:
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield address_space(_fits_address_space(REGION_BYTES), resource.getrlimit(resource.RLIMIT_AS)[0])
    yield overcommit(_read("/proc/sys/vm/overcommit_memory").strip(), _read("/proc/meminfo"))


def _program_checks() -> Iterator[Check]:
    yield python(sys.version_info[:3])
    for name, (module, minimum) in PACKAGES.items():
        yield package(name, _version(module), minimum)
    yield Check("fault path", True, FAULT_PATH[is_compiled()])
    named = os.environ.get("DSM_NODE")
    yield named_node(Path(named)) if named else runtime_directory()


def is_compiled() -> bool:
    """Is the way of a fault compiled (setup.py)? Both services share its modules of dsm."""
    return not str(poller.__file__).endswith(".py")


# -- the kernel --------------------------------------------------------------------------------------------


def kernel(release: str, fix: str) -> Check:
    """``release``: as uname(2) has it."""
    version = tuple(map(int, re.findall(r"\d+", release)[:2]))
    needed = ".".join(map(str, KERNEL_MIN))
    if version >= KERNEL_MIN:
        return Check("kernel", True, f"Linux {release}")
    return Check("kernel", False, f"Linux {release}, {needed} or newer is needed", fix)


def kernel_fix(system: Mapping[str, str], host: str) -> str:
    """The command that installs a newer kernel, where that is one: ``system`` as os-release(5) has it, ``host``: the
    kind of container or ''."""
    if host:
        return "uname -r  # a container has the kernel of its host: install a newer one there"
    backports = f"{system.get('VERSION_CODENAME', 'stable')}-backports"
    commands = {
        "debian": f"echo 'deb http://deb.debian.org/debian {backports} main' | "
        "sudo tee /etc/apt/sources.list.d/backports.list && sudo apt-get update && "
        f"sudo apt-get install -y -t {backports} linux-image-$(dpkg --print-architecture) && sudo reboot",
        "ubuntu": f"sudo apt-get install -y linux-generic-hwe-{system.get('VERSION_ID', '24.04')} && sudo reboot",
    }
    other = "uname -r  # install and boot Linux 6.8 or newer, with CONFIG_USERFAULTFD"
    return commands.get(system.get("ID", ""), other)


def processor(machine: str, word_max: int, page_bytes: int) -> Check:
    """dsm knows the userfaultfd numbers of two architectures and works in 4 KiB pages."""
    detail = f"{machine}, pages of {page_bytes} bytes"
    if machine not in uffd.SYSCALL_NUMBERS or word_max < 2**63 - 1:
        return Check("processor", False, f"{detail}: 64-bit x86-64 or aarch64 is needed", "uname -m  # another machine")
    if page_bytes != PAGE_BYTES:
        fix = "getconf PAGESIZE  # install and boot a kernel with 4 KiB pages"
        return Check("processor", False, f"{detail}: the kernel must have pages of {PAGE_BYTES}", fix)
    return Check("processor", True, detail)


def container() -> str:
    """The kind of container this process runs in, '' for none."""
    for mark, kind in _MARKS.items():
        if os.path.exists(mark):
            return kind
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "Kubernetes"
    told = os.environ.get("container") or _read("/run/systemd/container").strip()  # noqa: SIM112  (its name)
    found = _CGROUP_MARK.search(_read("/proc/1/cgroup"))
    return told or (found.group() if found else "")


# -- userfaultfd -------------------------------------------------------------------------------------------


def _probe() -> tuple[bool, frozenset[str] | UserfaultfdUnavailable]:
    """Whether it works through the device, and the features it offers there or by the system call."""
    device = uffd.open_device()
    try:
        if device is not None:
            with suppress(UserfaultfdUnavailable):
                return True, uffd.probe(device)
        return False, uffd.probe(None)
    except UserfaultfdUnavailable as error:
        return False, error
    finally:
        if device is not None:
            os.close(device)


def userfaultfd(offered: frozenset[str] | UserfaultfdUnavailable, device: bool, fix: str) -> Check:
    """Whether a node of this user could make userfaultfds, and applications of this user get them."""
    if isinstance(offered, UserfaultfdUnavailable):
        return Check("userfaultfd", False, str(offered).removesuffix(uffd.SAYS_MORE), fix)
    if device:
        return Check("userfaultfd", True, f"through {uffd.DEVICE}")
    return Check("userfaultfd", True, "by the system call (CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1)")


def features(offered: frozenset[str], fix: str) -> Check:
    """What of userfaultfd is used, against what the running kernel says it has."""
    if missing := uffd.NEEDED - offered:
        return Check("userfaultfd features", False, f"missing: {', '.join(sorted(missing))}", fix)
    return Check("userfaultfd features", True, ", ".join(sorted(uffd.NEEDED)))


def _access_fix(host: str) -> str:
    user = str(os.geteuid() or "")
    minor = re.search(r"^ *(\d+) userfaultfd$", _read("/proc/misc"), re.MULTILINE)
    return access_fix(
        host, user, exists=os.path.exists(uffd.DEVICE), minor=minor.group(1) if minor else "", sysctl=_SYSCTL.exists()
    )


def access_fix(host: str, user: str, *, exists: bool, minor: str, sysctl: bool) -> str:
    """The command that lets ``user`` (a number; '' for root) use userfaultfd; '' if this kernel has none at all.

    ``exists``: the device file; ``minor``: its number, '' without such a device; ``sysctl``: there is one for the call.
    """
    own = f"sudo chown {user or 0} {uffd.DEVICE}"
    if exists and user:  # permission is what is missing, in a container or not; the owner stays
        return f"{_GROUP}  # until the next boot (then a udev rule does); or run the node as root"
    if host or exists:  # root that may not open it: a device control group, whatever the container is
        return _DEVICE_OPTION
    if minor:
        return f"sudo mknod -m 0600 {uffd.DEVICE} c 10 {minor} && {own}"
    return "sudo sysctl -w vm.unprivileged_userfaultfd=1" if sysctl else ""


# -- limits and memory -------------------------------------------------------------------------------------


def open_files(limit: int) -> Check:
    """``limit``: how many this process may have open."""
    if limit == resource.RLIM_INFINITY:
        return Check("open files", True, "no limit")
    detail = f"{limit} are enough for {limit // FILES_PER_ATTACHMENT} attached regions"
    enough = limit >= FILES_MIN
    return Check("open files", enough, detail, "" if enough else _raise("nofile", "65536"))


def _raise(limit: str, value: str) -> str:
    """For the shell it is pasted into, and what is started there."""
    return f"sudo prlimit --pid $$ --{limit}={value}"


def address_space(fits: bool, limit: int) -> Check:
    """``fits``: a region of 1 TiB could be mapped; ``limit``: the one on address space, in bytes."""
    text = "no limit" if limit == resource.RLIM_INFINITY else f"limited to {_size(limit)}"
    if fits:
        return Check("address space", True, f"{text}; {_size(REGION_BYTES)} can be mapped")
    return Check("address space", False, f"{text}: {_size(REGION_BYTES)} cannot be mapped", _raise("as", "unlimited"))


def memory_file(refusal: str, fix: str) -> Check:
    """``refusal``: why no memfd of 1 TiB could be made, '' if it could."""
    if refusal:
        return Check("memory files", False, refusal, fix)
    return Check("memory files", True, f"a memfd of {_size(REGION_BYTES)} can be made (and takes no memory)")


def huge_pages(single: bool) -> Check:
    """``single``: a page written to a memfd comes alone."""
    if single:
        return Check("huge pages", True, "shared memory is filled page by page")
    root = "/sys/kernel/mm/transparent_hugepage"
    return Check(
        "huge pages",
        False,
        "the kernel fills shared memory with huge pages: absent pages would read as zeros",
        f"echo advise | sudo tee {root}/shmem_enabled {root}/hugepages-*/shmem_enabled",
    )


def overcommit(mode: str, meminfo: str) -> Check:
    """``mode``: vm.overcommit_memory; ``meminfo``: the text of /proc/meminfo. Only mode 2 can refuse a page."""
    kib = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)}
    left = (kib.get("CommitLimit", 0) - kib.get("Committed_AS", 0)) << 10
    if mode == "2" and left < COMMIT_BYTES_MIN:
        detail = f"strict (2), and only {_size(max(0, left))} may still be committed"
        return Check("overcommit", False, detail, "sudo sysctl -w vm.overcommit_memory=0")
    return Check(
        "overcommit", True, f"mode {mode or '?'}; {_size(kib.get('MemAvailable', 0) << 10)} of memory available"
    )


def _fits_address_space(length: int) -> bool:
    try:
        memory.check_address_space(length)
    except RegionTooLarge:
        return False
    return True


def _memfd_refusal() -> str:
    try:
        os.close(memory.create_memfd("dsm:doctor", REGION_BYTES))
    except OSError as error:
        return f"no memfd can be made: {error.strerror}"
    except RegionTooLarge as error:
        return str(error)
    return ""


# -- Python, packages, the socket ---------------------------------------------------------------------------


def python(version: tuple[int, ...]) -> Check:
    """The running interpreter."""
    text, needed = ".".join(map(str, version)), ".".join(map(str, PYTHON_MIN))
    if version >= PYTHON_MIN:
        return Check("python", True, text)
    return Check("python", False, f"{text}, {needed} or newer is needed", f"sudo apt-get install -y python{needed}")


def package(name: str, version: str, minimum: tuple[int, ...]) -> Check:
    """``version``: of the installed package; '' if it cannot be imported."""
    needed = ".".join(map(str, minimum))
    if version and tuple(map(int, re.findall(r"\d+", version))) >= minimum:
        return Check(name, True, version)
    detail = f"{version or 'cannot be imported'}, {needed} or newer is needed"
    install = (sys.executable, "-m", "pip", "install", f"{name}>={needed}")
    return Check(name, False, detail, shlex.join(install))


def _version(module: str) -> str:
    try:
        found = importlib.import_module(module)
    except ImportError:
        return ""
    return str(found.__version__)


def named_node(path: Path) -> Check:
    """DSM_NODE names a socket: a node must answer there, since none is started for a name."""
    try:
        local.connect(path, CONNECT_TIMEOUT_S).close()
    except DsmError as error:
        return Check("node socket", False, f"DSM_NODE: {error}", "unset DSM_NODE")
    return Check("node socket", True, f"a node answers at {path} (DSM_NODE)")


def runtime_directory() -> Check:
    """The directory of this user's socket must be private, short enough a name, and able to hold a socket."""
    name, fix = "runtime directory", "export XDG_RUNTIME_DIR=$(mktemp -d)"
    try:
        directory = local.runtime_directory()
    except DsmError as error:
        return Check(name, False, str(error), fix)
    probe = directory / f"d{os.getpid()}"  # not longer than the name of the socket itself
    try:
        probe.unlink(missing_ok=True)
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as sock:
            sock.bind(str(probe))
        probe.unlink()
    except OSError as error:
        return Check(name, False, f"{directory} cannot hold a socket: {error}", fix)
    return Check(name, True, str(directory))


# -- facts ---------------------------------------------------------------------------------------------------


def _operating_system() -> Mapping[str, str]:
    with suppress(OSError):
        return platform.freedesktop_os_release()
    return {}


def _read(path: str) -> str:
    """The text of a file of the kernel's, '' if it is not there."""
    with suppress(OSError):
        return Path(path).read_text()
    return ""


def _size(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count} {unit}"
        count //= 1024
    return f"{count} TiB"
