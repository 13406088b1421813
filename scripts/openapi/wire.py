"""HTTP/1.1 as two ends of a connection see it: heads, and bodies piece by piece, as they are on the wire and what they mean."""
import select

READ = 65536


class Ended(Exception):
    """The other end is gone."""


class Stream:
    """One end of a connection. Who waits for it also hears when `other` goes."""

    def __init__(self, socket, other=None):
        self.socket, self.other, self.buffer = socket, other, b""

    def more(self):
        while self.other is not None and not self.other.buffer and self not in either(self, self.other):
            self.other.buffer += self.other.read()
        self.buffer += self.read()

    def read(self):
        data = self.socket.recv(READ)
        if not data:
            raise Ended
        return data

    def line(self):
        while b"\n" not in self.buffer:
            self.more()
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line + b"\n"

    def some(self, most):
        if not self.buffer:
            self.more()
        data, self.buffer = self.buffer[:most], self.buffer[most:]
        return data

    def has(self):
        """Whether there is something to read without waiting."""
        return bool(self.buffer) or self.socket.pending() > 0

    def send(self, data):
        self.socket.sendall(data)


class Head:
    """The first line and the fields of a message."""

    def __init__(self, stream):
        self.raw, self.fields = stream.line(), []
        self.first = self.raw.decode("latin-1").strip().split(" ", 2)
        while True:
            line = stream.line()
            self.raw += line
            if not line.strip():
                break
            name, _, value = line.decode("latin-1").partition(":")
            self.fields.append((name.strip().lower(), value.strip()))

    def get(self, name):
        """A field; empty if there is none. More than one are joined, as RFC 9110 section 5.3 has it."""
        return ", ".join(value for field, value in self.fields if field == name)

    def chunked(self):
        return "chunked" in self.get("transfer-encoding").lower()


def body(stream, head, to_the_end):
    """The pieces of a body: (what is on the wire, what it means). `to_the_end`: without a length it ends with the connection."""
    if head.chunked():
        yield from chunks(stream)
        return
    length = head.get("content-length")
    left = int(length) if length else None
    if left is None and not to_the_end:
        return
    while left != 0:
        try:
            data = stream.some(left or READ)
        except Ended:
            if left is None:
                return
            raise
        left = None if left is None else left - len(data)
        yield data, data


def chunks(stream):
    while True:
        line = stream.line()
        left = int(line.split(b";")[0], 16)
        yield line, b""
        if left == 0:
            break
        while left:
            data = stream.some(left)
            left -= len(data)
            yield data, data
        yield stream.line(), b""
    # Trailers, and the empty line.
    while True:
        line = stream.line()
        yield line, b""
        if not line.strip():
            return


def either(one, other):
    """Waits until one of two streams has something to read: those that have."""
    ready = [stream for stream in (one, other) if stream.has()]
    return ready or [stream for stream in (one, other) if stream.socket in select.select([one.socket, other.socket], [], [])[0]]
