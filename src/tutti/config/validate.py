"""A raw mapping against the schema, with everything that is wrong found in one go.

pydantic stops before it looks at combinations as soon as one field is wrong. So what is wrong is taken out
and the rest is judged again, until nothing is left to complain about; a complaint that only exists because
something was taken out is not passed on.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tutti.config.describe import (
    annotation_words,
    choices,
    field_at,
    item_type,
    pattern_of,
    section_at,
    section_keys,
    section_of,
    show,
    takes,
    words,
)
from tutti.config.fields import Section
from tutti.config.problems import KeyPath, Problem, SourceMap, dotted
from tutti.config.suggest import nearest, suggest_key

Root = TypeVar("Root", bound=Section)
_MENTION = re.compile(r"[a-z_]+(?:\.[a-z_]+)*")
_YES_AND_NO = {"yes": "true", "y": "true", "on": "true", "no": "false", "n": "false", "off": "false"}


def validate(
    raw: dict[str, Any], sources: SourceMap, broken: Collection[KeyPath], root: type[Root]
) -> Root | list[Problem]:
    """What the schema `root` makes of `raw`, or everything that is wrong with it.

    `broken`: paths whose values were found unreadable before, and are None in `raw`.
    """
    return _Validation(raw, sources, broken, root).run()


class _Validation(Generic[Root]):
    def __init__(
        self, raw: dict[str, Any], sources: SourceMap, broken: Collection[KeyPath], root: type[Root]
    ) -> None:
        self.root = root
        self.raw = copy.deepcopy(raw)
        self.sources = sources
        self.problems: list[Problem] = []
        self.gone: set[KeyPath] = set()  # taken out, or probably meant by something that was
        self.incomplete = bool(broken)
        for path in broken:
            self.take_out(path)

    def run(self) -> Root | list[Problem]:
        while True:
            try:
                config = self.root.model_validate(self.raw)
            except ValidationError as error:
                self.incomplete = True
                if not self.note(error):
                    return self.problems
            else:
                return self.problems if self.incomplete else config

    def note(self, error: ValidationError) -> bool:
        """Turn pydantic's errors into problems; whether anything could be taken out."""
        wrong_values: set[KeyPath] = set()
        progress = False
        for detail in error.errors(include_url=False):
            path = self.path_of(detail["loc"])
            if detail["type"] == "extra_forbidden":
                progress |= self.unknown_key(path)
            elif detail["type"] == "value_error":
                progress |= self.combination(path, str(detail["ctx"]["error"]))
            else:
                wrong_values.add(path)
        for path in sorted(wrong_values, key=dotted):
            # A union complains once for the list as a whole and once for its item: the item says more.
            if not any(other[: len(path)] == path and other != path for other in wrong_values):
                progress |= self.wrong_value(path)
        return progress

    def path_of(self, loc: tuple[int | str, ...]) -> KeyPath:
        """pydantic's `loc` without the names of union members that it puts in between."""
        path: KeyPath = ()
        value: Any = self.raw
        for part in loc:
            if section_at(path, self.root) is not None and (isinstance(value, dict) or not path):
                path, value = (*path, part), value.get(part) if isinstance(value, dict) else None
            elif isinstance(part, int) and isinstance(value, list) and part < len(value):
                path, value = (*path, part), value[part]
        return path

    def unknown_key(self, path: KeyPath) -> bool:
        section, key = path[:-1], str(path[-1])
        origin = self.sources.key(path)
        guesses = suggest_key(section, key, self.root)
        for guess in guesses:
            self.gone.add(tuple(guess.split(".")) if "." in guess else (*section, guess))
        if origin.override:  # there, keys are always written out
            guesses = tuple(guess if "." in guess else dotted((*section, guess)) for guess in guesses)
        reason = "unknown key"
        if ":" in key:
            reason += " (a space is missing after the `:`)"
        elif not guesses:
            reason += f"; {dotted(section) or 'the file'} has the keys {', '.join(section_keys(section, self.root))}"
        self.problems.append(Problem(origin, dotted(path) or repr(key), reason, guesses))
        return self.take_out(path)

    def combination(self, section: KeyPath, message: str) -> bool:
        mentions = [tuple(word.split(".")) for word in _MENTION.findall(message)]
        paths = [(*section, *mention) for mention in mentions]
        written = [path for path in paths if path != section and self.present(path)]
        if not any(_overlap(path, gone) for path in paths for gone in self.gone):
            said_by = [self.sources.key(path) for path in written]
            overridden = [place for place in said_by if place.override]
            place = self.sources.key(section) if section or not written else said_by[0]
            place = overridden[0] if overridden else place
            self.problems.append(Problem(place, dotted(section), message))
        # Another combination may be wrong as well, which shows only when this one is out of the way.
        return self.take_out(section) if section else bool(written) and self.take_out(written[0])

    def wrong_value(self, path: KeyPath) -> bool:
        value = self.value(path)
        field_path = tuple(part for part in path if isinstance(part, str))
        field = field_at(field_path, self.root)
        assert field is not None, f"pydantic complained about {path}, which is not in the schema"
        expected = words(field)
        if field_path != path:
            expected = annotation_words(item_type(field.annotation))
        reason = f"should be {expected}; got {show(value)}"
        guesses: tuple[str, ...] = ()
        if value is None:
            reason = f"is empty; remove the line, or give {expected}"
        elif isinstance(value, str):
            guesses = self.guess_word(field, value)
            reason += "" if guesses else _about_quotes(field.annotation, value)
        elif (
            isinstance(value, float)
            and value.is_integer()
            and takes(field.annotation, int)
            and abs(value) < 1e15
        ):
            guesses = (str(int(value)),)
        elif isinstance(value, bool | int | float) and takes(field.annotation, str) and not section_of(field):
            quoted = "'\"{}\"'" if self.sources.value(path).override else '"{}"'
            reason += (
                f"; for text write {quoted.format(str(value).lower() if isinstance(value, bool) else value)}"
            )
        self.problems.append(Problem(self.sources.value(path), dotted(path), reason, guesses))
        return self.take_out(field_path)

    @staticmethod
    def guess_word(field: FieldInfo, value: str) -> tuple[str, ...]:
        if field.annotation is bool:
            said = _YES_AND_NO.get(value.lower())
            return (said,) if said else tuple(nearest(value, ("true", "false")))
        pattern = pattern_of(field.metadata)
        if pattern and re.search(pattern, value.upper()):  # `15m` for `15M`
            return (value.upper(),)
        return tuple(nearest(value, choices(field.annotation)))

    def value(self, path: KeyPath) -> Any:
        value: Any = self.raw
        for part in path:
            if isinstance(part, int):
                value = value[part] if isinstance(value, list) else None
            else:
                value = value.get(part) if isinstance(value, dict) else None
        return value

    def present(self, path: KeyPath) -> bool:
        parent = self.value(path[:-1])
        return isinstance(parent, dict) and path[-1] in parent

    def take_out(self, path: KeyPath) -> bool:
        while path and isinstance(path[-1], int):  # an item of a list: the whole list is in doubt
            path = path[:-1]
        self.gone.add(path)
        parent = self.value(path[:-1]) if path else None
        if isinstance(parent, dict) and path[-1] in parent:
            del parent[str(path[-1])]
            return True
        return False


def _overlap(one: KeyPath, other: KeyPath) -> bool:
    shared = min(len(one), len(other))
    return shared > 0 and one[:shared] == other[:shared]


def _about_quotes(annotation: Any, value: str) -> str:
    """Numbers in quotes are text."""
    try:
        float(value)
    except ValueError:
        return ""
    return "; remove the quotes" if takes(annotation, int) or takes(annotation, float) else ""
