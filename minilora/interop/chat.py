"""A conversation as the text that a model was trained on, by the chat template that came with the model.

A template is a program in Jinja's language, of whoever made the file. It runs as transformers runs it, in Jinja's
sandbox, which keeps it from files and from Python, though not from taking its time: chat with models that you trust so
far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

_SAFE = (3, 1, 6)  # the sandbox of earlier versions lets templates out


def render_chat(template: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, str], source: str) -> str:
    """The text of `messages`, each {"role": ..., "content": ...}, up to where the model's answer begins.

    `variables` are names that a template may use, as "bos_token"; `source` says in an error whose template it is.
    Raises `ValueError` where jinja2 (extra `llm`) is missing or too old, the messages are no such list, or the template
    fails.
    """
    environment = _environment()
    plain = _plain(messages)
    try:
        return environment.from_string(template).render(
            messages=plain, tools=None, documents=None, add_generation_prompt=True, **variables
        )
    except Exception as error:  # Jinja's own, and whatever Python raises within a template
        raise ValueError(f"The chat template of {source} fails with these messages: {error}.") from error


def _plain(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Copies of texts alone: a template sees no object that has methods of its own."""
    if not isinstance(messages, Sequence) or not messages:
        raise ValueError(f'Messages are a list like [{{"role": "user", "content": "Hello"}}], not {messages!r}.')
    plain = []
    for message in messages:
        fields = [message.get(name) if isinstance(message, Mapping) else None for name in ("role", "content")]
        if not all(isinstance(field, str) for field in fields):
            raise ValueError(f'A message is like {{"role": "user", "content": "Hello"}}, not {message!r}.')
        plain.append({"role": str(fields[0]), "content": str(fields[1])})
    return plain


def _environment() -> Any:
    """Jinja's sandbox with the settings and the few functions that templates are written for."""
    try:
        import jinja2.sandbox
    except ImportError as error:
        raise ValueError(
            'A chat template needs the library jinja2: pip install -e ".[llm]" in the clone of minilora.'
        ) from error
    found = version("jinja2")
    if tuple(int(part) for part in found.split(".")[:3] if part.isdecimal()) < _SAFE:
        raise ValueError(f"jinja2 {found} runs templates that may leave its sandbox: pip install 'jinja2>=3.1.6'.")

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
