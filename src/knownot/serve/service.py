"""From a request to the answers for its photos."""

from __future__ import annotations

import asyncio
import io
import logging
import math
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image
from starlette.requests import Request

from knownot.data.cores import usable_cores
from knownot.data.inbox import Inbox
from knownot.errors import DataError
from knownot.serve.batcher import Batcher
from knownot.serve.decode import decode
from knownot.serve.drift import DriftAlarm
from knownot.serve.limits import Limits
from knownot.serve.load import Load
from knownot.serve.logs import log
from knownot.serve.metrics import Metrics
from knownot.serve.refused import RefusedError
from knownot.serve.schemas import PhotoAnswer, Problem
from knownot.serve.served_model import ServedModel, Settings
from knownot.serve.uploads import Upload, read_uploads


@dataclass(frozen=True)
class Batching:
    """How photos are put together.

    Attributes:
        threads: Batches that run at the same time; one for each usable core if None.
        size: Most photos in a batch. On a CPU a batch takes as long as its photos one by one, and
            who comes first waits for the last: large ones only delay.
        drift_window: Last photos, or of a detector boxes, that the drift alarm watches.
    """

    threads: int | None = None
    size: int = 2
    drift_window: int = 500


class Service:
    """Reads, decodes, batches and counts. One for each event loop.

    Args:
        model: The model that answers.
        limits: What is taken on.
        batching: How photos are put together.
        inbox: Where photos are kept that the model calls unknown by its own score and alpha.
    """

    def __init__(
        self,
        model: ServedModel[Any],
        limits: Limits,
        batching: Batching,
        inbox: Inbox | None = None,
    ) -> None:
        self.model = model
        self.limits = limits
        self.load = Load(limits)
        summary = model.metadata.calibration
        self.drift = DriftAlarm(
            batching.drift_window, model.defaults.alpha, summary.sizes if summary else ()
        )
        self.metrics = Metrics(model, self.load, self.drift)
        self._batching = batching
        self._inbox = inbox
        self._batcher: Batcher[Upload, Settings, PhotoAnswer]
        self._keepers: ThreadPoolExecutor

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts the threads, answers for a grey photo once, and stops the threads at the end."""
        self._batcher = Batcher(
            self._answers,
            threads=self._batching.threads or usable_cores(),
            size=self._batching.size if self.model.together else 1,
            observe=self.metrics.batches.observe,
        )
        self._keepers = ThreadPoolExecutor(usable_cores(), thread_name_prefix="keep")
        worker = asyncio.create_task(self._batcher.work())
        try:
            grey = io.BytesIO()
            side = min(500, math.isqrt(self.limits.photo_pixels))
            Image.new("RGB", (side, side), "grey").save(grey, "PNG")
            await self._batcher.answer(Upload("grey", grey.getvalue()), self.model.defaults)
            yield
        finally:
            worker.cancel()
            self._keepers.shutdown(wait=False, cancel_futures=True)
            log("stopped")

    async def predict(self, request: Request, settings: Settings) -> list[PhotoAnswer]:
        """Answers for the photos of a request, in order; of one alone, its error is raised.

        Raises:
            RefusedError: If the request is not answered.
        """
        self.load.refuse_if_full()
        uploads: list[Upload] | None = None
        try:
            async with asyncio.timeout(self.limits.seconds):
                with self.load.uploading() as take:
                    uploads = await read_uploads(request, self.limits, take)
                    with self.load.accepted(len(uploads)):
                        request.state.told = {"photos": len(uploads)}
                        answers = await asyncio.gather(
                            *(
                                self._answer(upload, settings, len(uploads) > 1)
                                for upload in uploads
                            )
                        )
        except TimeoutError:
            seconds = f"{self.limits.seconds:g} seconds"
            if uploads is None:
                message = f"the upload took longer than {seconds}"
                raise RefusedError(408, "upload_too_slow", message) from None
            message = f"no answer within {seconds}; try again, or with fewer photos"
            raise RefusedError(503, "too_slow", message, {"Retry-After": "1"}) from None
        self._count(answers, settings)
        return answers

    async def _answer(self, upload: Upload, settings: Settings, several: bool) -> PhotoAnswer:
        try:
            answer = await self._batcher.answer(upload, settings)
        except RefusedError as refusal:
            failed = PhotoAnswer(
                name=upload.name, error=Problem(error=refusal.code, message=refusal.message)
            )
            if several:
                return failed
            self.metrics.answers([failed])
            raise
        if self._inbox is not None and settings == self.model.defaults:  # a client sets no alpha
            await asyncio.get_running_loop().run_in_executor(
                self._keepers, self._keep, self._inbox, upload, answer
            )
        return answer.model_copy(update={"name": upload.name})

    def _answers(self, uploads: list[Upload], settings: Settings) -> list[PhotoAnswer | Exception]:
        """Decodes and answers in one thread: a core that decodes another photo in between delays both.

        Photos wait as they were sent, and at most one batch of each thread is decoded.
        """
        photos, refusals = [], {}
        for place, upload in enumerate(uploads):
            try:
                image = decode(upload, self.model.least_side, self.limits.photo_pixels)
                photos.append(self.model.prepare(image))
            except RefusedError as refusal:
                refusals[place] = refusal
            except DataError as error:
                refusals[place] = RefusedError(422, "unreadable_photo", str(error))
        answers = iter(self.model.answer(photos, settings) if photos else ())
        return [refusals.get(place) or next(answers) for place in range(len(uploads))]

    def _keep(self, inbox: Inbox, upload: Upload, answer: PhotoAnswer) -> None:
        nearest = answer.nearest[0].label if answer.nearest else None
        try:
            inbox.keep_unknown(
                {**answer.model_dump(), "nearest_class": nearest},
                lambda: decode(upload, None, self.limits.photo_pixels),
            )
        except (DataError, RefusedError) as error:  # a full disk is no reason not to answer
            log("unknown photo not kept", level=logging.WARNING, reason=str(error))

    def _count(self, answers: list[PhotoAnswer], settings: Settings) -> None:
        self.metrics.answers(answers)
        if settings != self.model.defaults:
            return  # the promise is about the model's own score and alpha
        for one in (one for answer in answers if answer.error is None for one in answer.judged()):
            if self.drift.observe(bool(one.is_unknown)):
                low, high = (count / self.drift.window for count in self.drift.interval)
                log(
                    "drift began" if self.drift.active else "drift ended",
                    level=logging.WARNING if self.drift.active else logging.INFO,
                    unknown_rate=self.drift.rate,
                    promised=[low, high],
                    **{self.model.judged: self.drift.window},
                )
