"""One streamed HTTP answer: server-sent events as they come, by the standard library's asyncio.

Closing the iterator closes the connection, which vLLM takes as the request's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from k15core.errors import InvalidInputError, ProcessDiedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

LAST = "[DONE]"


async def events(
    host: str, port: int, path: str, body: Mapping[str, Any]
) -> AsyncGenerator[dict[str, Any]]:
    """POST `body` and hand out the JSON of each event, until the server says that it was the last.

    Raises ProcessDiedError where the connection cannot be made or ends before that, and
    InvalidInputError, with the server's words, where it refuses.
    """
    where = f"vLLM at http://{host}:{port}"
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection(host, port)
        content = json.dumps(body).encode()
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode()
            + content
        )
        await writer.drain()
        status, chunked = await _head(reader)
        if status != 200:
            said = b"".join([part async for part in _parts(reader, chunked)])
            raise InvalidInputError(
                f"{where} answers POST {path} with {status}: {said.decode(errors='replace')[:500]}"
            )
        held = b""
        async for part in _parts(reader, chunked):
            *lines, held = (held + part).split(b"\n\n")
            for line in lines:
                text = line.decode().removeprefix("data: ")
                if text == LAST:
                    return
                yield json.loads(text)
        raise ProcessDiedError(f"{where} ended a stream in its middle")
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise ProcessDiedError(f"{where} ended a stream in its middle: {error!r}") from error
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Status, and whether the body is chunked."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    return int(lines[0].split()[1]), "transfer-encoding: chunked" in lines


async def _parts(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    """The body as it comes."""
    if not chunked:
        while part := await reader.read(1 << 16):
            yield part
        return
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
