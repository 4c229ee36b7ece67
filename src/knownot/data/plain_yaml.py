"""Settings in YAML files: plain data, and no key twice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from knownot.errors import ConfigError


def read_settings(text: str, name: str) -> dict[str, Any]:
    """The settings of a YAML document.

    Args:
        text: The document.
        name: Of its file, for errors.

    Raises:
        ConfigError: If it is not YAML, does not hold keys and values, a key is no text, or a key
            stands there twice: YAML would take the later one without a word.
    """
    try:
        values: Any = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of dates, numbers, depth
        raise ConfigError(f"{name}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: expected `key: value` lines")
    for key in values:
        if not isinstance(key, str):
            raise ConfigError(f"{name}: keys must be words, got {key!r}")
    return values


class _Loader(yaml.SafeLoader):
    """Plain data, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """PyYAML's own, once no key stands there twice."""
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # PyYAML's own, which takes `<<` apart
                continue
            name = self.construct_object(key, deep=True)
            if not isinstance(name, Hashable):
                continue  # PyYAML says so
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"a second {name!r}", problem_mark=key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)
