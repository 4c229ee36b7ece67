"""What is refused, with which words, and that the service lives on."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import schemathesis
from hypothesis import given, settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.serve.conftest import LIMITS, RED, Running, encoded, running


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 200 + data[-2:]


def lying_jpeg() -> bytes:
    """A JPEG whose header says 60000 x 60000."""
    data = bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"", 422, "no_photo", "empty"),
        (b"GIF89a", 415, "unsupported_photo", "JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "unsupported_photo", "JPEG"),
        (b"hello", 415, "unsupported_photo", "too damaged"),
        (RED[:200], 422, "unreadable_photo", "photo: not a readable photo"),
        (encoded(Image.new("RGB", (1100, 1000))), 413, "too_many_pixels", "limit of 1 mega"),
        (png_that_claims(30_000, 30_000), 413, "too_many_pixels", "limit of 1 mega"),
        (png_that_claims(900, 900), 422, "unreadable_photo", "photo"),
        (lying_jpeg(), 413, "too_many_pixels", "limit of 1 mega"),
        (many_scans(), 422, "unreadable_photo", "scans"),
        (b"\0" * 300_001, 413, "upload_too_large", "larger than 0.286102 MiB"),
    ],
)
def test_bodies_that_are_refused(
    server: Running, body: bytes, status: int, code: str, words: str
) -> None:
    answer = server.predict(body)
    problem = answer.json()
    assert (answer.status_code, problem["error"]) == (status, code)
    assert words in problem["message"]
    assert "0x" not in answer.text  # no addresses
    assert server.predict(RED).status_code == 200


def test_a_body_is_counted_as_it_comes(server: Running) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    answer = server.http.post("/predict", content=endless(), headers={"content-type": "image/png"})
    assert (answer.status_code, answer.json()["error"]) == (413, "upload_too_large")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ([("photos", ("a.png", RED))] * 5, 413, "too_many_photos"),
        ([("photos", ("a.png", b"x" * 100_000))] * 3, 413, "upload_too_large"),
        ([("file", ("a.png", RED))], 422, "malformed_form"),
        ([("photos", (None, b"text"))], 422, "malformed_form"),
        ([("photos", ("a.png", RED)), ("url", (None, "http://localhost/"))], 422, "malformed_form"),
    ],
)
def test_forms_that_are_refused(server: Running, fields: list, status: int, code: str) -> None:
    answer = server.http.post("/predict", files=fields)
    assert (answer.status_code, answer.json()["error"]) == (status, code)


HEAD = b'--b\r\nContent-Disposition: form-data; name="photos"; filename="a.png"\r\n'
WHOLE = HEAD + b"\r\n" + RED + b"\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("multipart/form-data", WHOLE, 422, "malformed_form"),
        ("multipart/form-data; boundary=c", WHOLE, 422, "malformed_form"),
        ("multipart/form-data; boundary=" + "b" * 71, WHOLE, 422, "malformed_form"),
        ("multipart/form-data; boundary=b", b"", 422, "malformed_form"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 422, "no_photo"),
        ("multipart/form-data; boundary=b", WHOLE[:-60], 422, "malformed_form"),
        # The second photo is cut off: the first alone is no answer.
        (
            "multipart/form-data; boundary=b",
            WHOLE[:-4] + HEAD[3:] + b"\r\nx",
            422,
            "malformed_form",
        ),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", 422, "malformed_form"),
        ("multipart/form-data; boundary=b", HEAD + b"x: " + b"y" * 9999, 422, "malformed_form"),
        ("multipart/form-data; boundary=b", HEAD + b"x: y\r\n" * 99, 422, "malformed_form"),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nx: y\r\n\r\n\r\n" * 9999,
            422,
            "malformed_form",
        ),
        ("multipart/form-data; boundary=b", HEAD.join([b"\r\n\r\n"] * 99), 413, "too_many_photos"),
        ("application/json", b"{}", 415, "unsupported_type"),
        ("application/x-www-form-urlencoded", b"photos=/etc/passwd", 415, "unsupported_type"),
        ("", RED, 415, "unsupported_type"),
        ("text/plain; boundary=\xff", RED, 415, "unsupported_type"),
    ],
)
def test_malformed_bodies(
    server: Running, content_type: str, body: bytes, status: int, code: str
) -> None:
    headers = {"content-type": content_type.encode("latin-1")}
    answer = server.http.post("/predict", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (status, code), answer.text


@pytest.mark.parametrize("charset", ["undefined", "unicode_escape", "idna", "utf-16", "no-such"])
def test_a_client_does_not_choose_the_codec(server: Running, charset: str) -> None:
    body = WHOLE.replace(b"a.png", b"\\ud800\xff\x00\\x07.png")
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    answer = server.http.post("/predict", content=body, headers={"content-type": kind})
    assert answer.status_code in (200, 422)
    if answer.status_code == 200:
        assert answer.json()["photos"][0]["label"] == "red"


@pytest.mark.parametrize(
    "query",
    ["alpha=0", "alpha=1", "alpha=nan", "alpha=inf", "alpha=x", "score=max", "score=", "aplha=0.1"],
)
def test_parameters_out_of_range(server: Running, query: str) -> None:
    answer = server.http.post(
        f"/predict?{query}", content=RED, headers={"content-type": "image/png"}
    )
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid_parameter")
    assert query.partition("=")[0] in answer.json()["message"]


def test_mutated_forms_are_never_an_error_of_the_server(server: Running) -> None:
    rng = random.Random(0)
    for _ in range(300):
        body = bytearray(WHOLE)
        for _ in range(rng.randrange(1, 8)):
            start = rng.randrange(len(body))
            stop = start + rng.choice([0, 1, 1, 2, 30])
            body[start:stop] = rng.choice([b"", b"\r\n", b"--b", b'"', b"\0", rng.randbytes(3)])
        answer = server.http.post(
            "/predict",
            content=bytes(body),
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
        assert answer.status_code in (200, 413, 415, 422)
        assert answer.json().keys() in ({"error", "message"}, {"score", "alpha", "photos"})


def test_a_full_queue_refuses_and_says_when_to_come_back(server: Running) -> None:
    with server.service.load.accepted(7):
        assert server.predict(RED).status_code == 200
        answer = server.predict(RED, RED)
        assert (answer.status_code, answer.json()["error"]) == (429, "queue_full")
        assert answer.headers["retry-after"] == "1"
        assert server.http.get("/readyz").status_code == 200
    with server.service.load.accepted(8):
        assert server.predict(RED).status_code == 429
        assert server.http.get("/readyz").status_code == 503
        assert server.http.get("/healthz").status_code == 200
    assert server.predict(RED, RED).status_code == 200


def test_a_limit_below_the_first_photo_of_its_own_starts(exported_file: Path) -> None:
    with running(exported_file, replace(LIMITS, photo_pixels=10_000)) as server:
        assert server.predict(encoded(Image.new("RGB", (99, 99)))).status_code == 200
        assert server.predict(encoded(Image.new("RGB", (101, 101)))).status_code == 413


def test_addresses_lead_nowhere_else(server: Running) -> None:
    answer = server.http.post("/predict/", content=RED, headers={"host": "evil.example"})
    assert answer.status_code == 404
    assert "location" not in answer.headers


def test_pages_of_other_sites_send_no_photos(server: Running) -> None:
    for site, status in (("cross-site", 403), ("same-origin", 200), ("none", 200)):
        headers = {"sec-fetch-site": site, "content-type": "image/png"}
        answer = server.http.post("/predict", content=RED, headers=headers)
        assert answer.status_code == status
    assert answer.json().keys() >= {"photos"}


def test_a_name_that_leads_here_from_elsewhere_reads_nothing(exported_file: Path) -> None:
    """What a browser sends when another site has its own name lead to this machine."""
    paths = ("/model", "/metrics", "/samples/0", "/thumbnails/0")
    with running(exported_file, samples=[RED], host_names=["Photos.example."]) as server:
        for name in ("evil.example", "localhost.evil.example:80", "[::1", "xlocalhost"):
            answers = [server.http.get(path, headers={"host": name}) for path in paths]
            answers.append(server.http.post("/predict", content=RED, headers={"host": name}))
            assert {answer.status_code for answer in answers} == {403}
            assert "--allow-host" in answers[0].json()["message"]
        for name in ("photos.example:8000", "LOCALHOST:1", "a.localhost", "[::1]:80", "192.0.2.1"):
            assert server.http.get("/samples/0", headers={"host": name}).content == RED
        assert server.http.get("/healthz", headers={"host": "evil.example"}).status_code == 200


def test_what_phones_put_behind_a_picture_is_not_read(server: Running) -> None:
    photo = encoded(Image.new("RGB", (64, 64), "red"), "JPEG")
    behind = b"\xff\xda\x00\x02" * 1000
    alone, with_video = (server.predict(data).json() for data in (photo, photo + behind))
    assert with_video["photos"][0]["p_value"] == alone["photos"][0]["p_value"]


def test_errors_are_json_and_headers_are_safe(server: Running) -> None:
    for method, path, status in (
        ("GET", "/predict", 405),
        ("GET", "/no/such", 404),
        ("GET", "/..%2f..%2fapp.py", 404),
        ("DELETE", "/model", 405),
    ):
        answer = server.http.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()) == {"error", "message"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers
    assert "text/html" in server.http.get("/").headers["content-type"]


def test_a_key_is_asked_for_where_one_is_set(exported_file: Path) -> None:
    with running(exported_file, api_key="grün") as server:
        for path in ("/model", "/metrics"):
            assert server.http.get(path).status_code == 401
        for key in ("x", "grün2", "gr\udcc3"):
            headers = {b"authorization": b"Bearer " + key.encode("utf-8", "surrogateescape")}
            answer = server.http.post("/predict", content=RED, headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (401, "wrong_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/healthz", "/readyz", "/", "/openapi.json"):
            assert server.http.get(path).status_code == 200
        headers = {b"authorization": b"Bearer " + "grün".encode()}
        assert server.http.get("/model", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_watchers_may_ask_for_the_head_alone(server: Running, path: str) -> None:
    head, whole = server.http.head(path), server.http.get(path)
    assert head.status_code == whole.status_code == 200
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert not head.content


def test_the_service_keeps_what_its_openapi_says(server: Running) -> None:
    # No schema can say that bytes must be a photo, so that check is left out.
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen = set()
    for operation in schema.get_all_operations():

        @given(case=operation.ok().as_strategy())
        @settings(max_examples=40)
        def check(case: schemathesis.Case) -> None:
            answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
            seen.add((case.path, answer.status_code))

        check()
    assert {("/model", 200), ("/metrics", 200), ("/predict", 415), ("/predict", 422)} <= seen


def test_openapi_has_examples_of_what_is_really_answered(server: Running) -> None:
    document = server.http.get("/openapi.json").json()
    example = document["components"]["schemas"]["Answers"]["example"]
    (real,) = server.predict(RED).json()["photos"]
    assert {*example["photos"][0], "boxes", "error"} == real.keys()
    assert "multipart/form-data" in json.dumps(document["paths"]["/predict"])
