"""Sub-commands of `adedge train` for methods that have no file here: their options are the fields of the class."""

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
    """The sub-commands that have a file here, then one for each other method that is installed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of methods; imports none."""
        from adedge.methods import method_names

        return [*self.commands, *(name for name in method_names() if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A sub-command; None where no method is called so."""
        if cmd_name in self.commands or cmd_name not in self.list_commands(ctx):
            return super().get_command(ctx, cmd_name)
        return _Later(name=cmd_name, callback=None, help=_where_from(cmd_name))


class _Later(TyperCommand):
    """A sub-command in a list: a name and a help, and the rest when it is called, since that imports the method."""

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        """The context of the command that the method's class gives."""
        return generic_command(str(self.name)).make_context(info_name, args, parent, **extra)


def generic_command(name: str) -> Any:
    """The sub-command of a method, made of its class: see `options_from`. Raises what `method_named` raises."""
    from adedge.methods import method_named

    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command(name)(training_command(name, options_from(cast("type[BaseModel]", method_named(name)))))
    return typer.main.get_command(app)


def options_from(kind: type[BaseModel]) -> Callable[..., dict[str, Any]]:
    """What `training_command` takes: its parameters are the fields of ``kind`` that an option can hold.

    Those are booleans, numbers, strings and literal choices of strings, or None. An option that is not given is left to
    `Method.for_dataset`. Raises `UsageError` for a field without a default that is none of them.
    """

    def given(**options: Any) -> dict[str, Any]:
        return options

    parameters = []
    for name, field in kind.model_fields.items():
        scalar = _scalar(field.annotation)
        if scalar is not None:
            parameters.append(_parameter(name, scalar, field))
        elif field.is_required():
            raise UsageError(f"no option can hold {kind.__name__}'s field '{name}', and it has no default: give it one")
    given.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    given.__doc__ = getdoc(kind)
    return given


def _parameter(name: str, scalar: Any, field: FieldInfo) -> Parameter:
    text, held = field.description or "", scalar
    if not field.is_required():
        default = field.get_default(call_default_factory=True)
        text += "" if default is None else f"  [default: {default}]"
        held = scalar | None
    return Parameter(
        name,
        Parameter.KEYWORD_ONLY,
        default=Parameter.empty if field.is_required() else None,
        annotation=Annotated[held, typer.Option(help=text.strip(), show_default=False)],
    )


def _scalar(annotation: Any) -> Any:
    """The type of an option for a field of type ``annotation``, without None; None where there is no such option."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _scalar(arguments[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        return _scalar(kinds[0]) if len(kinds) == 1 else None
    if get_origin(annotation) is Literal:
        return annotation if all(isinstance(choice, str) for choice in arguments) else None
    return annotation if annotation in (bool, int, float, str) else None


def _where_from(name: str) -> str:
    from adedge.methods.registry import GROUP, origin

    points = tuple(entry_points(group=GROUP, name=name))
    return f"A method of {' and '.join(map(origin, points))}." if points else "A method of adedge."
