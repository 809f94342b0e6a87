"""Sub-commands of `adedge train` for methods without a file here: the fields of the class become the options."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from inspect import Parameter, Signature, getdoc
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from adedge.cli.train.options import training_command
from adedge.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


class Methods(TyperGroup):
    """The sub-commands that have a file here, then one for every other installed method."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all methods; imports none of them."""
        from adedge.methods import method_names

        return [*self.commands, *(name for name in method_names() if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A sub-command; None if no method has that name."""
        if cmd_name in self.commands or cmd_name not in self.list_commands(ctx):
            return super().get_command(ctx, cmd_name)
        return _LazyCommand(name=cmd_name, callback=None, help=_origin_text(cmd_name))


class _LazyCommand(TyperCommand):
    """A sub-command with a name and a help text only, which imports its method when it is called."""

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        """The context of the full command, built from the method's class."""
        return generic_command(str(self.name)).make_context(info_name, args, parent, **extra)


def generic_command(name: str) -> Any:
    """The sub-command of a method, built from its class: see `options_from`. Raises what `method_named` raises."""
    from adedge.methods import method_named

    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command(name)(training_command(name, options_from(cast("type[BaseModel]", method_named(name)))))
    return typer.main.get_command(app)


def options_from(kind: type[BaseModel]) -> Callable[..., dict[str, Any]]:
    """A function for `training_command` whose parameters are the fields of ``kind`` that an option can hold.

    Those are booleans, numbers, strings and literal choices of strings, each optionally None. `Method.for_dataset`
    chooses the value of an option that is not given. Raises `UsageError` for any other field without a default.
    """

    def collect(**options: Any) -> dict[str, Any]:
        return options

    parameters = []
    for name, field in kind.model_fields.items():
        scalar = _scalar(field.annotation)
        if scalar is not None:
            parameters.append(_parameter(name, scalar, field))
        elif field.is_required():
            raise UsageError(f"no option can hold {kind.__name__}'s field '{name}', and it has no default: give it one")
    collect.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    collect.__doc__ = getdoc(kind)
    return collect


def _parameter(name: str, scalar: Any, field: FieldInfo) -> Parameter:
    text, annotation = field.description or "", scalar
    if not field.is_required():
        default = field.get_default(call_default_factory=True)
        text += "" if default is None else f"  [default: {default}]"
        annotation = scalar | None
    return Parameter(
        name,
        Parameter.KEYWORD_ONLY,
        default=Parameter.empty if field.is_required() else None,
        annotation=Annotated[annotation, typer.Option(help=text.strip(), show_default=False)],
    )


def _scalar(annotation: Any) -> Any:
    """The type, without None, of an option for a field of type ``annotation``; None if no option can hold the field."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _scalar(arguments[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        return _scalar(kinds[0]) if len(kinds) == 1 else None
    if get_origin(annotation) is Literal:
        return annotation if all(isinstance(choice, str) for choice in arguments) else None
    return annotation if annotation in (bool, int, float, str) else None


def _origin_text(name: str) -> str:
    from adedge.methods.registry import GROUP, origin

    points = tuple(entry_points(group=GROUP, name=name))
    return f"A method of {' and '.join(map(origin, points))}." if points else "A method of adedge."
