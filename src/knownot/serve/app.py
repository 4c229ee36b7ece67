"""Routes, with their types.

Without postponed annotations: FastAPI reads those of functions in functions, too.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import knownot
from knownot.data.inbox import Inbox
from knownot.serve.admission import key_check, name_check
from knownot.serve.decode import FORMATS
from knownot.serve.exchange import Exchange, problem
from knownot.serve.limits import Limits
from knownot.serve.refused import RefusedError
from knownot.serve.schemas import Answers, Health, LimitsInfo, ModelInfo, Problem
from knownot.serve.served_model import ServedModel, Settings
from knownot.serve.service import Batching, Service
from knownot.serve.uploads import FIELD

# What is here is served at `/static`, and `index.html` at `/`.
STATIC = Path(__file__).parent / "static"
_FOR_A_YEAR = "private, max-age=31536000, immutable"
_REFUSALS = {
    403: "A page of another site sent it, or reached the service under a name that is not its own.",
    408: "The upload took too long.",
    413: "Too many bytes, pixels or photos.",
    415: "Not a photo, or not of a format that is read.",
    422: "A malformed body, a damaged photo, or a parameter out of range.",
    429: "The queue is full; try again after `Retry-After` seconds.",
    503: "Too busy, or too slow; try again after `Retry-After` seconds.",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {
                    FIELD: {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "format": "binary"},
                    }
                },
            }
        },
        "image/jpeg": _BINARY,
        "image/png": _BINARY,
        "application/octet-stream": _BINARY,
    },
}


def create_app(
    model: ServedModel[Any],
    limits: Limits | None = None,
    batching: Batching | None = None,
    *,
    api_key: str | None = None,
    host_names: Collection[str] | None = None,
    samples: Sequence[bytes] = (),
    inbox: Inbox | None = None,
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        model: The model that answers.
        limits: What is taken on.
        batching: How photos are put together.
        api_key: What clients must send as `Authorization: Bearer ...`; nothing if None.
        host_names: What requests may call its host, beside localhost and addresses; anything if None.
        samples: JPEG files that the page offers to try.
        inbox: Where unknown photos are kept.
    """
    service = Service(model, limits or Limits(), batching or Batching(), inbox)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="knownot",
        version=knownot.__version__,
        summary="Photo classification and object detection that answers `unknown` instead of guessing.",
        lifespan=lifespan,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # behind a proxy they would lead to plain HTTP
    )
    app.state.service = service
    app.add_middleware(Exchange, observe=service.metrics.request)
    _add_error_handlers(app)
    protected, refusals = [], {}
    if api_key is not None:
        protected.append(Depends(key_check(api_key)))
        refusals[401] = "A missing or wrong API key."
    if host_names is not None:
        protected.append(Depends(name_check(host_names)))
        refusals[403] = "The service was reached under a name that is not its own."
    app.include_router(
        _answers_and_facts(service, samples),
        dependencies=protected,
        responses=_problems(refusals),
    )
    _add_page(app)
    _add_health(app, service)
    return app


def _add_page(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")


def _answers_and_facts(service: Service, samples: Sequence[bytes]) -> APIRouter:
    """What tells of photos or of the model."""
    model, routes = service.model, APIRouter()

    @routes.post(
        "/predict",
        response_model=Answers,
        responses=_problems(_REFUSALS),
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(
        request: Request,
        alpha: Annotated[
            float | None,
            Query(gt=0, lt=1, description="Share of known photos that may be called unknown."),
        ] = None,
        score: Annotated[
            str | None,
            Query(description="Score that decides.", json_schema_extra={"enum": model.scores}),
        ] = None,
    ) -> Response:
        """Labels or `unknown` for the photos of a form, or for one photo as the body.

        A photo that cannot be read has an `error` of its own among several; alone, it is an error
        of the request.
        """
        # A browser sends a photo for any page that asks it to, to services of this machine too.
        if request.headers.get("sec-fetch-site") == "cross-site":
            raise RefusedError(403, "cross_site", "pages of other sites may not send photos")
        if strange := request.query_params.keys() - {"alpha", "score"}:
            message = f"{min(strange)}: is no parameter; expected alpha or score"
            raise RefusedError(422, "invalid_parameter", message)
        if score is not None and score not in model.scores:
            message = f"score: expected one of {', '.join(model.scores)}"
            raise RefusedError(422, "invalid_parameter", message)
        settings = Settings(score or model.defaults.score, alpha or model.defaults.alpha)
        photos = await service.predict(request, settings)
        answers = Answers(score=settings.score, alpha=settings.alpha, photos=photos)
        return Response(answers.model_dump_json(), media_type="application/json")

    @routes.get("/model")
    async def describe() -> ModelInfo:
        """The model: classes, scores, threshold, calibration, versions, limits."""
        names = LimitsInfo.model_fields.keys() - {"formats"}
        limits = {name: getattr(service.limits, name) for name in names}
        return ModelInfo(
            **model.describe(),
            samples=len(samples),
            limits=LimitsInfo(**limits, formats=[f.lower() for f in FORMATS]),
        )

    @routes.get("/samples/{number}", include_in_schema=False)
    async def sample(number: int) -> Response:
        if not 0 <= number < len(samples):
            raise RefusedError(404, "not_found", f"there are {len(samples)} samples, from 0")
        return Response(samples[number], media_type="image/jpeg")

    @routes.get(
        "/thumbnails/{number}",
        response_class=Response,
        responses={
            **_problems({404: "There is no such thumbnail.", 422: "No number."}),
            200: {"content": {"image/jpeg": _BINARY}},
        },
    )
    def thumbnail(number: int) -> Response:
        """A small copy of a training photo, as an answer's `nearest_photos` name it."""
        jpeg = model.thumbnails and model.thumbnails.jpeg(number)
        if jpeg is None:
            raise RefusedError(404, "not_found", "there is no such thumbnail")
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": _FOR_A_YEAR})

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    return routes


def _add_health(app: FastAPI, service: Service) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Health:
        """That the service lives."""
        return Health(status="ok")

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", responses=_problems({503: "The queue is full."}))
    async def readyz() -> Health:
        """That it takes photos just now."""
        if service.load.full:
            raise RefusedError(503, "queue_full", "the queue is full", {"Retry-After": "1"})
        return Health(status="ready")


def _problems(texts: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem, "description": text} for code, text in texts.items()}


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, refusal: RefusedError) -> JSONResponse:
        return problem(refusal.status, refusal.code, refusal.message, refusal.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = first["loc"][-1] if first["loc"] else "request"
        return problem(422, "invalid_parameter", f"{place}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        headers = dict(error.headers or {})
        return problem(error.status_code, code, f"{error.detail}; see /openapi.json", headers)
