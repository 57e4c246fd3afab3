"""HTTP by httptools, and connections of HTTP/1.0 by h11.

HTTP/1.0 has no chunks: the end of the connection ends an answer whose length is not known in
advance (RFC 9112, section 6.1). Uvicorn's httptools sends chunks whatever the version, its h11 does
not. nginx asks with HTTP/1.0 unless it is told otherwise.
"""

from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Bytes of a request line; h11 has this bound too, httptools has none.
REQUEST_LINE_BYTES = 65_536


class HttpProtocol(HttpToolsProtocol):
    """A connection whose first request says which of the two parses it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._opening: bytes | None = b""  # what has come of the first request line

    def data_received(self, data: bytes) -> None:
        """Parse what comes, once the first line has said how."""
        if self._opening is None:
            super().data_received(data)
            return
        self._opening = (self._opening + data).lstrip(b"\r\n")
        line, end, _ = self._opening.partition(b"\n")
        if not end and len(line) <= REQUEST_LINE_BYTES:
            return
        data, self._opening = self._opening, None
        if len(line) > REQUEST_LINE_BYTES:
            self.send_400_response("The request line is too long.")
        elif line.rstrip().endswith(b" HTTP/1.0"):
            self._leave_to_h11(data)
        else:
            super().data_received(data)

    def _leave_to_h11(self, data: bytes) -> None:
        self.connections.discard(self)
        protocol = H11Protocol(
            config=self.config,
            server_state=self.server_state,
            app_state=self.app_state,
            _loop=self.loop,
        )
        protocol.connection_made(self.transport)
        protocol.data_received(data)
        self.transport.set_protocol(protocol)
