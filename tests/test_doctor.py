"""`dsm doctor`: every check passes and fails where it should, and each failure names one command."""

from __future__ import annotations

import errno
import os
import resource
import socket
import tomllib
from pathlib import Path

import pytest

from dsm import doctor, memory, uffd
from dsm.constants import PAGE_BYTES
from dsm.doctor import Check
from dsm.errors import RegionTooLarge, UserfaultfdUnavailable

DEBIAN = {"ID": "debian", "VERSION_CODENAME": "bookworm", "VERSION_ID": "12"}
UBUNTU = {"ID": "ubuntu", "VERSION_CODENAME": "jammy", "VERSION_ID": "22.04"}
GIVE_GROUP = (
    "sudo chgrp $(id -g) /dev/userfaultfd && sudo chmod g+rw /dev/userfaultfd"
    "  # until the next boot (then a udev rule does); or run the node as root"
)
NO_LIMIT = resource.RLIM_INFINITY
PYPROJECT = Path(doctor.__file__).parent.parent / "pyproject.toml"


def refused(check: Check) -> Check:
    """A check that failed, as a failure must be: one line that says what, one command that mends it."""
    assert not check.ok
    assert check.detail
    assert check.fix
    assert "\n" not in check.detail + check.fix
    return check


# -- all together ----------------------------------------------------------------------------------------------


def test_every_failure_has_a_command_and_every_success_none(capfd: pytest.CaptureFixture[str]) -> None:
    checks = doctor.examine()
    for check in checks:
        assert check.detail
        assert bool(check.fix) != check.ok, check
    assert len({check.name for check in checks}) == len(checks)
    assert capfd.readouterr() == ("", "")


def test_examining_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("DSM_NODE", raising=False)
    doctor.examine()  # numpy keeps a descriptor or two from its first import
    before = os.listdir("/proc/self/fd")
    doctor.examine()
    assert os.listdir("/proc/self/fd") == before
    assert list((tmp_path / "dsm").iterdir()) == []


def test_without_userfaultfd_the_rest_is_still_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: int | None) -> frozenset[str]:
        raise UserfaultfdUnavailable("no")

    monkeypatch.setattr(uffd, "probe", refuse)
    checks = {check.name: check for check in doctor.examine()}
    refused(checks["userfaultfd"])
    assert "userfaultfd features" not in checks
    assert "python" in checks


def test_without_memory_files_the_rest_is_still_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, length: int) -> int:
        raise RegionTooLarge(f"no memory file can have {length} bytes")

    monkeypatch.setattr(memory, "create_memfd", refuse)
    checks = {check.name: check for check in doctor.examine()}
    assert "no memory file" in refused(checks["memory files"]).detail
    assert "huge pages" not in checks
    assert "python" in checks


def test_the_packages_are_those_that_the_project_asks_for() -> None:
    asked = tomllib.loads(PYPROJECT.read_text())["project"]
    lowest = dict(line.split(">=") for line in asked["dependencies"])
    for name, (_, minimum) in doctor.PACKAGES.items():
        assert lowest[name] == ".".join(map(str, minimum))
    assert asked["requires-python"] == ">=" + ".".join(map(str, doctor.PYTHON_MIN))


# -- the kernel ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["6.8.0-40-generic", "6.18.44", "7.0-rc1", "10.1.2"])
def test_a_kernel_new_enough(release: str) -> None:
    assert doctor.kernel(release, "fix") == Check("kernel", True, f"Linux {release}")


@pytest.mark.parametrize("release", ["6.7.12", "5.15.0-119-generic", "4.19", "6"])
def test_a_kernel_too_old(release: str) -> None:
    assert refused(doctor.kernel(release, "newer")).fix == "newer"


def test_a_newer_kernel_comes_from_the_distribution_or_the_host() -> None:
    assert "-t bookworm-backports linux-image-" in doctor.kernel_fix(DEBIAN, "")
    assert "linux-generic-hwe-22.04 " in doctor.kernel_fix(UBUNTU, "")
    assert "6.8" in doctor.kernel_fix({}, "")
    assert "host" in doctor.kernel_fix(DEBIAN, "Docker")


def test_the_processor() -> None:
    for machine in ("x86_64", "aarch64"):
        assert doctor.processor(machine, 2**63 - 1, PAGE_BYTES).ok
    refused(doctor.processor("riscv64", 2**63 - 1, PAGE_BYTES))
    refused(doctor.processor("x86_64", 2**31 - 1, PAGE_BYTES))
    assert "65536" in refused(doctor.processor("aarch64", 2**63 - 1, 65536)).detail


@pytest.fixture
def no_container(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(doctor, "_MARKS", {})
    monkeypatch.setattr(doctor, "_read", lambda path: "0::/init.scope\n" if path.endswith("cgroup") else "")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("container", raising=False)
    return monkeypatch


def test_no_container_without_a_mark_of_one(no_container: pytest.MonkeyPatch) -> None:
    assert doctor.container() == ""


def test_the_marks_of_containers(no_container: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_container.setattr(doctor, "_read", lambda path: "0::/system.slice/docker-4f.scope\n" if "cgroup" in path else "")
    assert doctor.container() == "docker"
    no_container.setenv("container", "systemd-nspawn")
    assert doctor.container() == "systemd-nspawn"
    no_container.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert doctor.container() == "Kubernetes"
    no_container.setattr(doctor, "_MARKS", {str(tmp_path): "Podman"})
    assert doctor.container() == "Podman"


# -- userfaultfd -----------------------------------------------------------------------------------------------


def test_userfaultfd_by_either_way() -> None:
    assert "/dev/userfaultfd" in doctor.userfaultfd(uffd.NEEDED, True, "fix").detail
    assert "CAP_SYS_PTRACE" in doctor.userfaultfd(uffd.NEEDED, False, "fix").detail
    assert refused(doctor.userfaultfd(UserfaultfdUnavailable("why"), False, "fix")) == (
        "userfaultfd",
        False,
        "why",
        "fix",
    )


def test_the_doctor_does_not_refer_to_itself() -> None:
    told = uffd._unavailable(errno.EPERM, "a userfaultfd")
    assert "dsm doctor" in str(told)
    assert "dsm doctor" not in refused(doctor.userfaultfd(told, False, "fix")).detail


@pytest.mark.parametrize("exists", [False, True])
def test_a_device_that_is_there_need_not_be_brought_in(exists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: exists)
    assert ("--device" in str(uffd._unavailable(errno.EPERM, "a userfaultfd"))) is not exists


def test_features_that_are_missing_are_named() -> None:
    assert doctor.features(uffd.NEEDED | {"MOVE"}, "fix").ok
    assert refused(doctor.features(uffd.NEEDED - {"POISON"}, "fix")).detail == "missing: POISON"


@pytest.mark.parametrize(
    ("host", "user", "exists", "minor", "sysctl", "fix"),
    [
        ("Docker", "", False, "257", True, "docker run --device /dev/userfaultfd ..."),
        ("Docker", "1000", True, "257", True, GIVE_GROUP),
        ("Docker", "1000", False, "257", True, "docker run --device /dev/userfaultfd ..."),
        ("", "", True, "257", True, "docker run --device /dev/userfaultfd ..."),
        ("", "1000", True, "257", True, GIVE_GROUP),
        (
            "",
            "1000",
            False,
            "257",
            True,
            "sudo mknod -m 0600 /dev/userfaultfd c 10 257 && sudo chown 1000 /dev/userfaultfd",
        ),
        ("", "1000", False, "", True, "sudo sysctl -w vm.unprivileged_userfaultfd=1"),
        ("", "1000", False, "", False, ""),
    ],
)
def test_access_is_given_by_one_command(host: str, user: str, exists: bool, minor: str, sysctl: bool, fix: str) -> None:
    assert doctor.access_fix(host, user, exists=exists, minor=minor, sysctl=sysctl) == fix


# -- limits and memory -----------------------------------------------------------------------------------------


def test_open_files() -> None:
    assert "341 attached regions" in doctor.open_files(1024).detail
    assert doctor.open_files(NO_LIMIT).ok
    assert refused(doctor.open_files(1023)).fix == "sudo prlimit --pid $$ --nofile=65536"


def test_address_space() -> None:
    assert doctor.address_space(True, NO_LIMIT) == Check("address space", True, "no limit; 1 TiB can be mapped")
    check = refused(doctor.address_space(False, 4 << 30))
    assert check.detail == "limited to 4 GiB: 1 TiB cannot be mapped"
    assert check.fix == "sudo prlimit --pid $$ --as=unlimited"


def test_a_limit_on_address_space_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(length: int) -> None:
        raise RegionTooLarge(f"{length}")

    monkeypatch.setattr(memory, "check_address_space", refuse)
    refused(next(check for check in doctor.examine() if check.name == "address space"))


def test_memory_files() -> None:
    assert doctor.memory_file("", "fix").ok
    assert refused(doctor.memory_file("why", "fix")).fix == "fix"


def test_huge_pages() -> None:
    assert doctor.huge_pages(True).ok
    assert "shmem_enabled" in refused(doctor.huge_pages(False)).fix


def test_overcommit() -> None:
    def meminfo(limit: int, committed: int) -> str:
        return (
            f"MemAvailable:   {8 << 20} kB\nCommitLimit:  {limit} kB\nCommitted_AS: {committed} kB\nHugePages_Free: 0\n"
        )

    assert doctor.overcommit("0", meminfo(1 << 20, 9 << 20)).detail == "mode 0; 8 GiB of memory available"
    assert doctor.overcommit("2", meminfo(9 << 20, 1 << 20)).ok
    assert "sysctl" in refused(doctor.overcommit("2", meminfo(9 << 20, 9 << 20))).fix
    assert "0 bytes" in refused(doctor.overcommit("2", meminfo(1 << 20, 9 << 20))).detail
    assert doctor.overcommit("", "").ok


# -- Python, packages, the socket ------------------------------------------------------------------------------


def test_python() -> None:
    assert doctor.python((3, 11, 0)).ok
    assert "python3.11" in refused(doctor.python((3, 10, 12))).fix


def test_packages() -> None:
    assert doctor.package("numpy", "2.0.0rc1", (1, 25)) == Check("numpy", True, "2.0.0rc1")
    assert "1.24.9, 1.25 or newer" in refused(doctor.package("numpy", "1.24.9", (1, 25))).detail
    check = refused(doctor.package("numpy", "", (1, 25)))
    assert "cannot be imported" in check.detail
    assert check.fix.endswith("-m pip install 'numpy>=1.25'")


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", {"nothing": ("dsm_no_such_module", (1, 0))})
    refused(next(check for check in doctor.examine() if check.name == "nothing"))


def test_the_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert doctor.runtime_directory() == Check("runtime directory", True, str(tmp_path / "dsm"))
    (tmp_path / "dsm").chmod(0o777)
    assert "XDG_RUNTIME_DIR" in refused(doctor.runtime_directory()).fix
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    refused(doctor.runtime_directory())


def test_a_runtime_directory_with_too_long_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert "too long" in refused(doctor.runtime_directory()).detail


def test_a_node_that_is_named_must_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "n"
    monkeypatch.setenv("DSM_NODE", str(path))
    assert refused(doctor.examine()[-1]).fix == "unset DSM_NODE"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        assert doctor.examine()[-1] == Check("node socket", True, f"a node answers at {path} (DSM_NODE)")
