"""A proxy in front of an object store on loopback that is slow and fails on purpose.

    with Proxy(server_url, latency_secs=0.02, fail_every=50) as proxy:
        os.environ["STORAGE_EMULATOR_HOST"] = proxy.url

It runs in a process of its own, so that it takes no turns of the interpreter that is
tested or timed, and ends with it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import urllib.parse

_PIECE = 1 << 18  # bytes
_HEAD_BYTES = 1 << 17
_UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 9\r\nConnection: close\r\n\r\ntry later"
)


class Proxy:
    """Passes requests on to a server of plain HTTP; a context manager."""

    def __init__(
        self,
        upstream: str,
        latency_secs: float = 0,
        fail_every: int | None = None,
        reset_every: int | None = None,
        only: str = "",
    ):
        """Describes what goes wrong; `with` starts it.

        Args:
          upstream: URL of the server, http://HOST:PORT.
          latency_secs: that every request waits before it is passed on.
          fail_every: each so-manieth request is answered 503 and not passed on.
          reset_every: each so-manieth request ends in a reset connection: by turns
            before it is passed on, and, if it is a GET, after the first bytes of the
            answer. (Stores answer an upload that is repeated because its answer was
            lost; fake-gcs-server has forgotten it.)
          only: counts and spoils only requests whose first line holds this text, such
            as 'GET'. Others wait and are passed on.
        """
        settings = {
            "upstream": upstream,
            "latency_secs": latency_secs,
            "fail_every": fail_every or 0,
            "reset_every": reset_every or 0,
            "only": only,
        }
        self._command = [sys.executable, os.path.abspath(__file__)]
        self._command += [f"--{name}={value}" for name, value in settings.items()]

    def __enter__(self) -> "Proxy":
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(self, *unused: object) -> None:
        self._process.stdin.close()  # it ends
        self._process.stdout.close()
        self._process.wait(timeout=10)

    def counts(self) -> dict[str, int]:
        """So far: `requests`, those `failed` and `reset`, and `body_bytes` returned."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class _Server:
    """What runs in the proxy's own process."""

    def __init__(self, settings: argparse.Namespace):
        self._settings = settings
        upstream = urllib.parse.urlsplit(settings.upstream)
        self._host, self._port = upstream.hostname, upstream.port
        self._authority = upstream.netloc.encode()
        self._own = b""
        self._counted = 0
        self.counts = {"requests": 0, "failed": 0, "reset": 0, "body_bytes": 0}

    async def run(self) -> None:
        server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, limit=_HEAD_BYTES
        )
        port = server.sockets[0].getsockname()[1]
        self._own = f"127.0.0.1:{port}".encode()
        print(f"http://127.0.0.1:{port}", flush=True)
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(self.counts), flush=True)
        os._exit(0)  # connections may still be open

    async def _serve(self, client, to_client) -> None:
        """The requests of one connection, one after the other."""
        to_client.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        server = []
        try:
            while await self._exchange(client, to_client, server):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # either side has gone
        finally:
            for writer in (to_client, *server[1:]):
                writer.close()

    async def _exchange(self, client, to_client, server: list) -> bool:
        """One request and its answer; returns whether another may follow."""
        head = await client.readuntil(b"\r\n\r\n")
        fault = self._fault(head)
        if self._settings.latency_secs:
            await asyncio.sleep(self._settings.latency_secs)
        if fault == "failed":
            if b"expect: 100-continue" not in head.lower():
                await self._body(client, None, head)
            to_client.write(_UNAVAILABLE)
            await to_client.drain()
            return False
        repeatable = head.startswith(b"GET ")
        if fault == "reset" and (self.counts["reset"] % 2 or not repeatable):
            _reset(to_client)
            return False
        if not server:
            server += await asyncio.open_connection(
                self._host, self._port, limit=_HEAD_BYTES
            )
        upstream, to_upstream = server
        to_upstream.write(_with_host(head, self._authority))
        sending = asyncio.ensure_future(self._body(client, to_upstream, head))
        answer = await self._answer_head(upstream, to_client)
        await sending
        if fault == "reset":
            to_client.write(answer[: len(answer) // 2])
            await to_client.drain()
            _reset(to_client)
            return False
        to_client.write(answer)
        method = head.split(b" ", 1)[0]
        keeps = await self._answer_body(upstream, to_client, answer, method)
        await to_client.drain()
        return keeps

    def _fault(self, head: bytes) -> str:
        line = head.split(b"\r\n", 1)[0].decode(errors="replace")
        self.counts["requests"] += 1
        if self._settings.only not in line:
            return ""
        self._counted += 1
        for fault, every in (
            ("failed", self._settings.fail_every),
            ("reset", self._settings.reset_every),
        ):
            if every and self._counted % every == 0:
                self.counts[fault] += 1
                return fault
        return ""

    async def _answer_head(self, upstream, to_client) -> bytes:
        while True:
            answer = await upstream.readuntil(b"\r\n\r\n")
            # Where to go on with an upload, for example: past the proxy otherwise.
            answer = answer.replace(self._authority, self._own)
            if answer.split(b" ", 2)[1] != b"100":
                return answer
            to_client.write(answer)

    async def _answer_body(self, upstream, to_client, head, method) -> bool:
        """Passes it on; returns whether the connection stays."""
        fields = _fields(head)
        status = head.split(b" ", 2)[1]
        if method == b"HEAD" or status in (b"204", b"304"):
            return True
        if b"content-length" in fields or b"transfer-encoding" in fields:
            self.counts["body_bytes"] += await self._body(upstream, to_client, head)
            return fields.get(b"connection", b"").lower() != b"close"
        while piece := await upstream.read(_PIECE):
            to_client.write(piece)
            await to_client.drain()
        return False

    async def _body(self, reader, writer, head) -> int:
        """Passes on what follows a head; returns how many bytes."""
        fields = _fields(head)
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            total = 0
            while True:
                line = await reader.readuntil(b"\r\n")
                size = int(line.split(b";")[0], 16)
                if writer:
                    writer.write(line)
                await self._pass(reader, writer, size + 2)
                total += size
                if not size:
                    return total
        size = int(fields.get(b"content-length", 0))
        await self._pass(reader, writer, size)
        return size

    async def _pass(self, reader, writer, size: int) -> None:
        while size:
            piece = await reader.read(min(size, _PIECE))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(piece)
            if writer:
                writer.write(piece)
                await writer.drain()


def _fields(head: bytes) -> dict[bytes, bytes]:
    lines = head.split(b"\r\n")[1:]
    pairs = (line.partition(b":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _with_host(head: bytes, authority: bytes) -> bytes:
    first, *lines = head.split(b"\r\n")
    lines = [
        b"Host: " + authority if line.lower().startswith(b"host:") else line
        for line in lines
    ]
    return b"\r\n".join([first, *lines])


def _reset(writer) -> None:
    """Closes a connection by RST instead of FIN."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, linger
    )
    writer.transport.abort()


def main() -> None:
    """Runs the process of `Proxy`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--latency_secs", type=float, default=0)
    parser.add_argument("--fail_every", type=int, default=0)
    parser.add_argument("--reset_every", type=int, default=0)
    parser.add_argument("--only", default="")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_Server(parser.parse_args()).run())


if __name__ == "__main__":
    main()
