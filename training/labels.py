"""What belongs to the files of a folder: captions, classes, and the splits of UCF-101.

captions.jsonl        one object a line: {"file": ..., "caption": ...} and/or {"class": ...}
classInd.txt          "1 ApplyEyeMakeup" a line, ids from 1 (UCF-101; here ids count from 0)
trainlist01.txt ...   "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1", test lists without the id
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

CAPTIONS_NAME = "captions.jsonl"
CLASSES_NAME = "classInd.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Captions and classes by file.

    Attributes:
        captions: text of each file that has one.
        classes: class id of each file that has one.
        names: the classes' names in the order of their ids; empty where they have none.
    """

    captions: dict[str, str]
    classes: dict[str, int]
    names: tuple[str, ...] = ()


def read_labels(folder: Path, files: list[str], class_index: Path | None = None) -> Labels:
    """The labels of a folder: `captions.jsonl`, else the names of its subfolders as classes.

    Classes given by name are sorted by name, upper and lower case alike (the order of UCF-101),
    unless a `classInd.txt` numbers them.

    Args:
        files: relative paths of its media.
        class_index: a `classInd.txt`. Default: the one in the folder, if there is one.

    Raises:
        ValueError: a line that is not understood, or a class that has no number, naming the file.
    """
    if class_index is None and (folder / CLASSES_NAME).is_file():
        class_index = folder / CLASSES_NAME
    captions: dict[str, str] = {}
    if (folder / CAPTIONS_NAME).is_file():
        where = folder / CAPTIONS_NAME
        captions, classes = read_captions(where)
    else:
        where = folder
        parts = {name: PurePosixPath(name).parts for name in files}
        classes = {name: path[0] for name, path in parts.items() if len(path) > 1}
    ids, names = _number(classes, class_index, where)
    return Labels(captions=captions, classes=ids, names=names)


def read_captions(path: Path) -> tuple[dict[str, str], dict[str, str | int]]:
    """Captions and classes by file, as a `captions.jsonl` has them.

    Raises:
        ValueError: a line that is not understood, naming file and line.
    """
    captions: dict[str, str] = {}
    classes: dict[str, str | int] = {}
    seen: dict[str, int] = {}
    for number, line in numbered_lines(path):
        entry = _entry(f"{path}:{number}", line)
        name = PurePosixPath(entry["file"]).as_posix()
        if name in seen:
            raise ValueError(f"{path}:{number}: file: {name} is in line {seen[name]} already")
        seen[name] = number
        if "caption" in entry:
            captions[name] = entry["caption"]
        if "class" in entry:
            classes[name] = entry["class"]
    return captions, classes


def _entry(where: str, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON ({error})") from error
    kinds = {"file": (str,), "caption": (str,), "class": (str, int)}
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: an object is needed, got {line}")
    for field in ("file", *entry.keys() & kinds.keys()):
        value = entry.get(field)
        if not isinstance(value, kinds[field]) or isinstance(value, bool) or value == "":
            raise ValueError(f"{where}: {field}: text is needed, got {value!r}")
    if not entry.keys() & {"caption", "class"}:
        raise ValueError(f"{where}: caption: missing, and so is class")
    return entry


def _number(
    classes: dict[str, str | int], class_index: Path | None, where: Path
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class ids by file, and the names in their order."""
    kinds = {type(value) for value in classes.values()}
    if len(kinds) > 1:
        raise ValueError(f"{where}: class: numbers and names are mixed")
    if kinds == {int}:
        lowest = min(classes, key=classes.__getitem__)
        if classes[lowest] < 0:
            raise ValueError(f"{where}: class: {lowest} has {classes[lowest]}, ids start at 0")
        return dict(classes), ()
    if class_index is not None:
        names = read_class_index(class_index)
    else:
        names = tuple(sorted(set(classes.values()), key=lambda name: (name.casefold(), name)))
    ids = {name: i for i, name in enumerate(names)}
    for name, value in classes.items():
        if value not in ids:
            raise ValueError(f"{class_index}: no class {value!r}, which {name} has")
    return {name: ids[value] for name, value in classes.items()}, names


def read_class_index(path: Path) -> tuple[str, ...]:
    """The class names of a `classInd.txt`, id 0 first.

    Raises:
        ValueError: a line that is no number and name, or numbers that are not 1, 2, 3, ...
    """
    names: dict[int, str] = {}
    for number, line in numbered_lines(path):
        word, _, name = line.partition(" ")
        if not word.isdecimal() or not name.strip() or int(word) in names:
            raise ValueError(f"{path}:{number}: a new number and a name are needed, got {line!r}")
        names[int(word)] = name.strip()
    if sorted(names) != list(range(1, len(names) + 1)):
        raise ValueError(f"{path}: numbers from 1 on are needed, got {sorted(names)}")
    return tuple(names[i] for i in sorted(names))


def read_split(path: Path) -> list[str]:
    """The files of a `trainlistNN.txt` or `testlistNN.txt`, in order.

    Raises:
        ValueError: it is empty.
    """
    files = []
    for _, line in numbered_lines(path):
        name, _, last = line.rpartition(" ")
        files.append(name.strip() if name and last.isdecimal() else line)
    if not files:
        raise ValueError(f"{path}: lists no files")
    return files


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers from 1.

    Raises:
        ValueError: no UTF-8 text, or not readable; names the file.
    """
    try:
        # Some editors mark a file as UTF-8; `splitlines` would also split inside captions.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text ({error})") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
