"""Breaks one defence of the sandbox after the other and writes down which attacks get through then.

Works on a copy of the tree (target/break), so that no broken build is ever near the real one: a
patch is applied to the copy's sources, spawner and core are built, and the attacks run against the
`direct` runner. Writes docs/sandbox-attacks.md: every attack, and for every defence the tests that
went red without it. `make break-defences`; needs root and takes some 20 minutes on two cores. Words
on the command line pick defences and write nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREE = ROOT / "target" / "break" / "tree"
PAGE = ROOT / "docs" / "sandbox-attacks.md"
SOURCES = "rust/sandbox/src/"


@dataclass(frozen=True)
class Break:
    """A defence, and what takes it away: file below SOURCES, what is there, what instead."""

    defence: str
    patches: tuple[tuple[str, str, str], ...]


DROP_SECCOMP = (
    '    seccomp::load(&filter::compile(filter::RULES, key)).step(|| "load the filter".into())?;\n'
)
PIDS = ('"pids" => Box::new(pids::Pids::open(directory)?),', '"pids" => continue,')
NPROC = "        (libc::RLIMIT_NPROC, limits.processes + beside), // of its user"

REMARK = (
    "\nA test also fails where its slot is not the same afterwards. Without the network namespace a"
    " slot that looks for sockets of the last run finds the host's, and is replaced after every"
    " run; without the ipc namespace segments of earlier attacks are, most likely, still charged to"
    " the slot when the next ones run."
)

BREAKS = [
    Break("nothing: the control", ()),
    Break("the filter on system calls", (("spawner/setup.rs", DROP_SECCOMP, ""),)),
    Break(
        "no_new_privs",
        (
            (
                "spawner/setup.rs",
                '    credentials::set_no_new_privileges().step(|| "set no_new_privs".into())?;\n',
                "",
            ),
        ),
    ),
    Break(
        "a user of its own",
        (("spawner/child.rs", "    credentials::set_user(order.user)?;\n", ""),),
    ),
    Break(
        "memory (cgroup)",
        (
            (
                "cgroup/v1/memory.rs",
                "let text = bytes.to_string();",
                "let text = (bytes << 6).to_string();",
            ),
        ),
    ),
    Break(
        "how many processes (pids cgroup and RLIMIT_NPROC)",
        (
            ("cgroup/v1/mod.rs", *PIDS),
            ("slot/request.rs", NPROC, "        (libc::RLIMIT_NPROC, 4000 + beside), //"),
        ),
    ),
    Break("no network (namespace)", (("spawner/setup.rs", " | libc::CLONE_NEWNET", ""),)),
    Break(
        "the watch on processor time",
        (
            (
                "slot/mod.rs",
                "limits.cpu_time.checked_sub(used)",
                "(limits.cpu_time * 100).checked_sub(used)",
            ),
        ),
    ),
    Break(
        "/proc read-only and its own processes only",
        (
            (
                "sys/mount.rs",
                "libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;",
                "libc::MS_NOSUID;",
            ),
            ("sys/mount.rs", 'c"subset=pid,hidepid=2"', 'c"hidepid=0"'),
        ),
    ),
    Break(
        "a file system as new",
        (
            (
                "spawner/files.rs",
                "if !descriptor::is_empty_file_system(self.mount.as_fd()).ok()? {",
                "if false {",
            ),
        ),
    ),
    Break(
        "an ipc namespace as new",
        (("spawner/mod.rs", "if process::has_no_ipc_objects() != Ok(true) {", "if false {"),),
    ),
    Break("no socket is left", (("spawner/sockets.rs", "!(0..LOOKS)", "false && (0..LOOKS)"),)),
    Break(
        "links are not followed when files are fetched",
        (
            (
                "spawner/files.rs",
                "descriptor::open_beneath(self.base(), path, flags)?",
                "descriptor::open(Some(self.base()), path, libc::O_NONBLOCK, 0)?",
            ),
        ),
    ),
    Break(
        "descriptors closed at exec",
        (
            ("spawner/child.rs", "    descriptor::close_on_exec_from(3)?;\n", ""),
            ("sys/descriptor.rs", "let flags = flags | libc::O_CLOEXEC;", ""),
        ),
    ),
    Break(
        "limits of each process",
        (
            (
                "spawner/child.rs",
                "        credentials::limit_resource(resource, soft, hard)?;\n",
                "        let _ = (resource, soft, hard);\n",
            ),
        ),
    ),
    Break(
        "no capabilities (bounding set)",
        (
            (
                "spawner/setup.rs",
                '    credentials::drop_bounding_set().step(|| "empty the bounding set".into())?;\n',
                "",
            ),
        ),
    ),
    Break(
        "names of its own (uts)",
        (("spawner/setup.rs", '"sandbox").step(|| "name', '"host").step(|| "name'),),
    ),
    Break(
        "cgroup namespace",
        (("spawner/setup.rs", "{ 0 } else { libc::CLONE_NEWCGROUP }", "{ 0 } else { 0 }"),),
    ),
    Break(
        "binds without set-user-id",
        (
            (
                "spawner/setup.rs",
                "READ_ONLY: u64 = mount::attribute::READ_ONLY | mount::attribute::NO_SUID;",
                "READ_ONLY: u64 = mount::attribute::READ_ONLY;",
            ),
        ),
    ),
    Break(
        "the end of a killed run is not held back",
        (("slot/mod.rs", "                self.group.release()?;\n", ""),),
    ),
]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command in the copy, its output as text."""
    environment = os.environ | {"PYTHONPATH": str(TREE / "python")}
    return subprocess.run(
        command, cwd=TREE, env=environment, text=True, capture_output=True, check=False
    )


def copy_tree() -> None:
    """A copy of what git knows, with what was built for it before.

    What differs is written anew, so that it is newer than what was built: with the original's time
    a source whose broken form was built last would not be built again.
    """
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True
    )
    for name in listed.stdout.splitlines():
        target = TREE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_bytes() != (ROOT / name).read_bytes():
            shutil.copy(ROOT / name, target)
    if not (TREE / ".venv").exists():
        (TREE / ".venv").symlink_to(ROOT / ".venv")


def build(names: list[str]) -> None:
    """The spawner of the copy, and the core where one of `names`, changed, is in it."""
    commands = [["bash", "scripts/build_spawner.sh"]]
    if not all(name.startswith(("spawner/", "sys/")) for name in names) or not names:
        commands.append(["cargo", "build", "--quiet", "--release", "--package", "k15-python"])
    for command in commands:
        done = run(command)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    shutil.copy2(TREE / "target/release/lib_core.so", TREE / "python/k15core/_core.abi3.so")


def red() -> list[str]:
    """The attacks that get through."""
    command = [".venv/bin/python", "-m", "pytest", "-q", "tests/attacks", "-k", "direct"]
    done = run([*command, "--tb=no", "-rfE", "--timeout=60", "-p", "no:cacheprovider"])
    if not re.search(r"\d+ (passed|failed)", done.stdout):
        raise SystemExit(done.stdout + done.stderr)
    return re.findall(r"^(?:FAILED|ERROR) \S*\[direct-(.+?)\]", done.stdout, re.MULTILINE)


def measure(one: Break) -> list[str]:
    """Which attacks get through without `one`."""
    before = {}
    for name, old, new in one.patches:
        path = TREE / SOURCES / name
        text = path.read_text()
        before.setdefault(path, text)
        if text.count(old) != 1:
            raise SystemExit(f"{name} has {text.count(old)} times what to break: {old!r}")
        path.write_text(text.replace(old, new))
    try:
        build([name for name, _, _ in one.patches])
        return red()
    finally:
        for path, text in before.items():
            path.write_text(text)
        if any(not name.startswith(("spawner/", "sys/")) for name, _, _ in one.patches):
            build([])


def page(found: dict[str, list[str]]) -> str:
    """docs/sandbox-attacks.md."""
    sys.path.insert(0, str(ROOT / "tests"))
    sys.path.insert(0, str(ROOT / "python"))
    from attacks.test_attacks import ATTACKS  # the tests' own folder, known from here on

    lines = [
        "# Attacks on the sandbox\n",
        "tests/attacks runs each of these programs against every runner and looks at what must"
        " hold; afterwards the slot must be the same, the next run must find nothing, and no"
        " process may be left: `.venv/bin/python -m pytest tests/attacks`. This page is written by"
        " scripts/break_defences.py (`make break-defences`).\n",
        "## Without one defence\n",
        "A defence was taken out of the sources, all built, and the attacks run against"
        " `direct`. Defences overlap on purpose: where few are red, others hold.\n",
        "| without | red |\n|---|---|",
    ]
    for defence, names in found.items():
        said = ", ".join(name.replace("-", " ") for name in names) or "none"
        lines.append(f"| {defence} | {len(names)}: {said} |")
    lines.append(REMARK)
    missing = [one.defence for one in BREAKS if one.defence not in found]
    if missing:
        lines.append(f"\nNot measured, so that nothing is shown for: {', '.join(missing)}.")
    lines += ["\n## The attacks\n", "| attack | tries | must hold |\n|---|---|---|"]
    lines += [f"| {each.name} | {each.tries} | {each.must_hold} |" for each in ATTACKS]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Break each, or those whose names hold a word of the command line, and write the page."""
    words = sys.argv[1:]
    copy_tree()
    found = {}
    for one in BREAKS:
        if not words or any(word in one.defence for word in words):
            found[one.defence] = measure(one)
            print(f"without {one.defence}: {', '.join(found[one.defence]) or 'none'}", flush=True)
            if not words:
                PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
