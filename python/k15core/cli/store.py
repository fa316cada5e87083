"""`k15 store verify`, `inspect` and `repair`; `top` and `export` have files of their own."""

from __future__ import annotations

import argparse
import json
from typing import Any

from k15core.cli import store_export, store_top
from k15core.cli.units import byte_size
from k15core.errors import CorruptionError, InvalidInputError

VERIFY_NOTES = """exit code:
  0 if every record is whole, 1 if something is damaged, 2 if there is no store or it is open

A record that a killed process was writing when it died was never acknowledged: the next opening
cuts it, and it is no damage.

examples:
  k15 store verify runs/doors/store
  k15 store verify buffer/ --json | jq '.damages[].what'
"""

INSPECT_NOTES = """exit code:
  0, 1 if the store is damaged so that it does not open, 2 if there is no store or it is open

examples:
  k15 store inspect runs/doors/store
  k15 store inspect buffer/ --trajectory 117
"""

REPAIR_NOTES = """what is left out:
  damaged records, and what cannot stand without them. A response that may lack its last tokens is
  unfinished again, with the tokens before the hole; a group whose prompt is lost is lost. The
  damaged files stay beside the store as NAME.log.damaged until you delete them.

exit code:
  0 if the store opens now, or did before; 2 if it could not be repaired: nothing is changed then
"""

Fields = dict[str, Any]


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `store` and what is below it to the command line."""
    top = commands.add_parser(
        "store", help="check, look into, watch, repair and export a trajectory store"
    )
    actions = top.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, summary: str, description: str, notes: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(
            name,
            help=summary,
            description=description,
            epilog=notes,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("directory", metavar="DIR", help="the store's directory")
        parser.add_argument("--json", action="store_true", help="print it as one JSON object")
        return parser

    verify = action(
        "verify",
        "read every record and name every damage",
        "Read and check every record of a store that nobody has open. Changes nothing.",
        VERIFY_NOTES,
    )
    verify.set_defaults(command=_verify)

    inspect = action(
        "inspect",
        "what a store holds",
        "Show files, records, trajectories, groups and marks of a store that nobody has open.\n"
        "Changes nothing.",
        INSPECT_NOTES,
    )
    inspect.add_argument("--trajectory", metavar="ID", type=int, help="show one trajectory")
    inspect.add_argument(
        "--max-uses",
        metavar="N",
        type=int,
        default=1,
        help="how often a group may be sampled before it counts as gone (default: 1)",
    )
    inspect.set_defaults(command=_inspect)

    repair = action(
        "repair",
        "make a store that is refused open again",
        "Write everything that is whole into new files, and set the damaged ones aside. Says\n"
        "exactly what is lost. A store that opens is left alone.",
        REPAIR_NOTES,
    )
    repair.set_defaults(command=_repair)
    store_top.add_command(actions)
    store_export.add_command(actions)


def _verify(options: argparse.Namespace) -> int:
    from k15core._core import verify_store

    found = verify_store(options.directory)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for damage in found["damages"]:
            print(describe_damage(damage))
        print(f"{found['records']} whole records, {byte_size(found['bytes'])}, {_files(found)}")
        print(_opening(found))
    return 1 if found["damages"] else 0


def describe_damage(damage: Fields) -> str:
    """A damage in one line: where it is, what it is about, what is wrong."""
    about = ""
    if damage["kind"]:
        subject = f" of {damage['subject']} {damage['subject_id']}" if damage["subject"] else ""
        about = f" ({damage['kind']}{subject})"
    records = ""
    if damage["record"] is not None:
        first, count = damage["record"], damage["records"]
        records = f"record {first}{about}: "
        if count is None:
            records = f"record {first} and what follows: "
        elif count > 1:
            records = f"records {first} to {first + count - 1}: "
    size = f", {damage['bytes']} bytes" if damage["bytes"] else ""
    return f"{damage['file']}: offset {damage['offset']}: {records}{damage['what']}{size}"


def _opening(found: Fields) -> str:
    if found["opening"] == "clean":
        return "an opening takes it up as it is"
    if found["opening"] == "cut":
        return f"an opening cuts its torn tail: {_torn(found['torn'])}"
    return "an opening refuses it; `k15 store repair` makes it open without what is damaged"


def _torn(torn: Fields) -> str:
    return f"{torn['bytes']} bytes at {torn['file']}, offset {torn['offset']} ({torn['record']})"


def _inspect(options: argparse.Namespace) -> int:
    from k15core._core import StoreReader

    if options.max_uses < 1:
        raise InvalidInputError(f"--max-uses = {options.max_uses}: expected at least 1")
    try:
        reader = StoreReader(options.directory, max_uses=options.max_uses)
    except CorruptionError as error:
        print(f"k15: {error}. `k15 store verify {options.directory}` names every damage")
        return 1
    with reader:
        if options.trajectory is not None:
            found = _trajectory(reader.trajectory(options.trajectory))
            found["segments"] = reader.segments(options.trajectory)
            lines = _describe_trajectory(found)
        else:
            found = reader.inspect()
            lines = _describe(found)
    print(json.dumps(found, indent=2) if options.json else "\n".join(lines))
    return 0


def _trajectory(view: Fields) -> Fields:
    names = ("trajectory_id", "group_id", "prompt_id", "state", "finish_reason", "reward")
    return {name: view[name] for name in names} | {
        "prompt_tokens": len(view["prompt_tokens"]),
        "tokens": len(view["tokens"]),
    }


def _describe_trajectory(found: Fields) -> list[str]:
    lines = [
        f"trajectory {found['trajectory_id']} of group {found['group_id']}, "
        f"prompt {found['prompt_id']}: {found['state']}",
        f"  finish reason   {found['finish_reason'] or '-'}",
        f"  reward          {'-' if found['reward'] is None else found['reward']}",
        f"  tokens          {found['prompt_tokens']} of the prompt, "
        f"{found['tokens']} of the response",
    ]
    if found["segments"]:
        lines += ["", f"  {'offset':>9} {'tokens':>9} {'version':>9}  place"]
    for each in found["segments"]:
        place = f"{each['file']}, offset {each['file_offset']}"
        lines.append(f"  {each['offset']:>9} {each['n']:>9} {each['version']:>9}  {place}")
    return lines


def _describe(found: Fields) -> list[str]:
    states, groups = found["trajectories"], found["groups"]
    lines = [
        "trajectories  " + ", ".join(f"{count} {state}" for state, count in states.items()),
        f"groups        {groups['all']}: {groups['ready']} to be sampled, {groups['gone']} used up "
        "or removed",
        f"tokens        {found['tokens']} of responses",
        f"bytes         {byte_size(found['bytes_written'])} written, "
        f"{byte_size(found['bytes_live'])} of them needed",
        f"version       {found['version']} is the newest",
        "marks         "
        + (", ".join(f"{id_} (version {v})" for id_, v in found["marks"].items()) or "none"),
        "columns       "
        + (
            ", ".join(
                f"{name} ({each['dtype']}, {each['tokens']} tokens)"
                for name, each in found["columns"].items()
            )
            or "none besides the built-in ones"
        ),
        f"next          group {found['next_group_id']}, trajectory {found['next_trajectory_id']}, "
        f"epoch {found['next_epoch']}",
    ]
    if found["torn"]:
        lines.append(f"torn tail     {_torn(found['torn'])}; the next opening cuts it")
    lines += ["", f"  {'staleness':>9} {'groups':>9}"]
    lines += [f"  {age:>9} {count:>9}" for age, count in found["staleness"].items()]
    lines += ["", f"  {'record':12} {'number':>9} {'bytes':>12}"]
    lines += [
        f"  {kind:12} {each['records']:>9} {byte_size(each['bytes']):>12}"
        for kind, each in found["kinds"].items()
    ]
    lines += ["", f"  {'file':28} {'size':>10} {'written':>10} {'needed':>10} {'from record':>12}"]
    for file in found["files"]:
        sizes = [byte_size(file[name]) for name in ("bytes", "committed", "bytes_live")]
        name = file["name"].rsplit("/", 1)[-1]
        lines.append(
            f"  {name:28} {sizes[0]:>10} {sizes[1]:>10} {sizes[2]:>10} {file['first_record']:>12}"
        )
    spares = f"{found['spare_files']} spare files, {byte_size(found['spare_bytes'])}"
    return [*lines, f"  {spares}"]


def _repair(options: argparse.Namespace) -> int:
    from k15core._core import repair_store

    done = repair_store(options.directory)
    print(json.dumps(done, indent=2) if options.json else "\n".join(_describe_repair(done)))
    return 0


def _describe_repair(done: Fields) -> list[str]:
    if not done["set_aside"]:
        return [f"nothing to repair: {_opening(done['before'])}"]
    lines = [describe_damage(damage) for damage in done["before"]["damages"]]
    lines.append("")
    if done["groups_lost"]:
        lines.append(f"lost groups: {' '.join(map(str, done['groups_lost']))}")
    lines += [f"trajectory {lost['trajectory_id']}: {_lost(lost)}" for lost in done["trajectories"]]
    for kind, count in done["others_lost"].items():
        lines.append(f"lost records of kind {kind}: {count}")
    if done["unknown_lost"]:
        lines.append(
            f"lost records whose kind is not known: {done['unknown_lost']}. If one was a use, a "
            "removal or a return to a mark, what it took away is back"
        )
    lines += [
        f"kept: {done['groups_kept']} groups, {done['trajectories_kept']} trajectories, "
        f"{done['tokens_kept']} tokens, in {len(done['written'])} new files",
        f"{len(done['set_aside'])} files were set aside as *.log.damaged",
    ]
    return lines


def _lost(lost: Fields) -> str:
    parts = []
    if lost["tokens_lost"]:
        parts.append(f"lost {lost['tokens_lost']} tokens")
    if lost["finish_lost"]:
        parts.append("is unfinished again")
    if lost["reward_lost"]:
        parts.append("lost its reward")
    if lost["group_id"] is None:
        parts.append("its group is lost")
    else:
        parts.append(f"{lost['tokens_kept']} tokens are left")
    return ", ".join(parts)


def _files(found: Fields) -> str:
    return f"{found['files']} file" + ("" if found["files"] == 1 else "s")
