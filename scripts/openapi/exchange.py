"""What was said, read back from what record.py has written."""
import json
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass
class Exchange:
    """A request and its answer, as far as there was one."""

    method: str
    path: str
    query: list
    asked: dict
    body: bytes
    status: int = 0
    answered: dict = field(default_factory=dict)
    data: bytes = b""
    # Whether the answer has come to its end.
    ended: bool = False

    def client(self):
        """The program that asked: `berth` of `berth/0.1`."""
        return self.asked.get("user-agent", "?").partition("/")[0]

    def flag(self, name):
        return any(key == name and value.lower() in ("true", "1") for key, value in self.query)

    def parameter(self, name):
        return next((value for key, value in self.query if key == name), "")

    def __str__(self):
        return f"{self.client()} {self.method} {self.path}{' (watch)' if self.flag('watch') else ''}"


def asked(request):
    url = urlsplit(request["target"])
    query = parse_qsl(url.query, keep_blank_values=True)
    path = "/".join(unquote(part) for part in url.path.split("/")).rstrip("/")
    return Exchange(request["method"], path, query, {name.lower(): value for name, value in request["headers"]}, request["body"].encode("latin-1"))


def read(lines):
    """Exchanges in the order in which they were asked."""
    found = {}
    for line in lines:
        if not line.endswith("\n"):
            # The proxy goes on writing.
            break
        what = json.loads(line)
        number = what["id"]
        if "request" in what:
            found[number] = asked(what["request"])
        elif "answer" in what:
            found[number].status = what["answer"]["status"]
            found[number].answered = {name.lower(): value for name, value in what["answer"]["headers"]}
        elif "data" in what:
            found[number].data += what["data"].encode("latin-1")
        else:
            found[number].ended = True
    return list(found.values())
