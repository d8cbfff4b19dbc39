"""An S3 service on 127.0.0.1: moto's, with a layer before it that makes faults."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Answer = Iterable[bytes]
Fault = Callable[[dict[str, Any], Callable[..., Any]], Answer | None]
"""Answers a request itself; None lets the service answer."""


class _Silent(WSGIRequestHandler):
    def log(self, *_: Any) -> None: ...


class S3:
    """A bucket of its own in a running service. `requests` are those that came: method and path."""

    def __init__(self) -> None:
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.bucket = f"models-{uuid.uuid4().hex[:12]}"
        self.fault: Fault | None = None
        self.requests: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self.client.create_bucket(Bucket=self.bucket)
        self.requests.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What points a client at it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "AKIAMADEUP",
            "AWS_SECRET_ACCESS_KEY": "made-up-secret",
            "AWS_REGION": "us-east-1",
        }

    @property
    def client(self) -> Any:
        """Another client, behind the store's back."""
        return boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1",
            aws_access_key_id="AKIAMADEUP", aws_secret_access_key="made-up-secret",
        )  # fmt: skip

    def sizes(self) -> dict[str, int]:
        """Every object of the bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", ())}

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Answer:
        self.requests.append(f"{request['REQUEST_METHOD']} {request['PATH_INFO']}")
        answer = self.fault(request, start) if self.fault else None
        return self._application(request, start) if answer is None else answer


def refuse(start: Callable[..., Any], status: str, code: str) -> Answer:
    """An error as S3 words it."""
    start(status, [("Content-Type", "application/xml")])
    return [f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]
