"""The routes of the API, by what they are about, and what all of them use."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from service.access import Caller, Keys
from service.catalogue import Catalogue
from service.dialects import PROBLEMS, Dialect
from service.door import Door
from service.openapi import problem_responses
from service.problems import FieldError, Forbidden, InvalidRequest, Unauthorized, refused
from service.wire import check_readable


def _operation(route: APIRoute) -> str:
    """The name of a route for programs that are generated: that of its function."""
    return route.name


class StrictRoute(APIRoute):
    """A route that refuses parameters it does not know, rather than to answer as if they were not there."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer, known = super().get_route_handler(), {each.alias for each in self.dependant.query_params}
        words = f"there is no such parameter; known here: {', '.join(sorted(known)) or 'none'}"

        async def answer_if_known(request: Request) -> Response:
            if unknown := request.query_params.keys() - known:
                raise refused([FieldError(field=name[:64], message=words) for name in sorted(unknown)])
            return await answer(request)

        return answer_if_known


def new_router(*, is_open: bool = False, dialect: Dialect = PROBLEMS) -> APIRouter:
    """A router whose operations are named as their functions; of open ones no key is asked."""
    responses = None if is_open else problem_responses(Unauthorized, dialect=dialect)
    return APIRouter(responses=responses, generate_unique_id_function=_operation)


def new_strict_router() -> APIRouter:
    """A router for the API proper, which refuses parameters it does not know."""
    responses = problem_responses(Unauthorized, InvalidRequest)
    return APIRouter(route_class=StrictRoute, responses=responses, generate_unique_id_function=_operation)


def door_of(request: Request) -> Door:
    """What stands behind the routes; asked for plainly, which costs a tenth of a dependency."""
    door: Door = request.app.state.door
    return door


def caller_of(request: Request) -> Caller:
    """Who asks."""
    caller: Caller = request.state.caller
    return caller


async def check_ready(request: Request) -> Catalogue:
    """What is on offer, if a request would be served now. Raises Draining or NotReady."""
    keys: Keys | None = request.app.state.keys
    if keys:
        check_readable(keys)
    return await door_of(request).check_ready()


def is_known(request: Request) -> bool:
    """Whether who asked still has the key that it asked with, or needs none."""
    keys: Keys | None = request.app.state.keys
    return keys is None or keys.knows(caller_of(request))


def admit_admin(request: Request) -> None:
    """Raise Forbidden unless an administrator asks."""
    if not caller_of(request).is_admin:
        raise Forbidden("this is for keys of administrators")
