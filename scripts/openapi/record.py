"""A reverse proxy that writes down what clients and a Kubernetes API server say to each other.

It has the key of the cluster's authority. To clients it shows a certificate for the server's address; to the server it shows, for a
client with a certificate, one with the same subject: so the server sees every client with that one's own rights, and nothing in
either of them knows of the proxy. Tokens are passed on as they are.
"""
import json
import pathlib
import secrets
import socket
import ssl
import subprocess
import tempfile
import threading

from wire import READ, Ended, Head, Stream, body, either


class Certificates:
    """Certificates of the authority, made when they are needed."""

    def __init__(self, certificate, key):
        self.authority = ["-CA", certificate, "-CAkey", key]
        self.certificate = certificate
        self.folder = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.folder.name)
        self.lock, self.contexts = threading.Lock(), {}

    def make(self, subject, extensions):
        at = self.path / str(len(list(self.path.iterdir())))
        at.mkdir()
        run = lambda *words: subprocess.run(["openssl", *words], cwd=at, check=True, capture_output=True)
        run("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", subject, "-keyout", "key", "-out", "asked")
        (at / "extensions").write_text(extensions)
        run("x509", "-req", "-in", "asked", *self.authority, "-set_serial", str(secrets.randbits(63)), "-days", "2", "-extfile", "extensions", "-out", "certificate")
        return at / "certificate", at / "key"

    def server(self, address):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.make("/CN=recorded", f"subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth\n"))
        context.load_verify_locations(self.certificate)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.set_alpn_protocols(["http/1.1"])
        return context

    def client(self, peer):
        """For what `getpeercert` has said of a client: the context of one with its name; or of one without a certificate."""
        words = [word for part in peer.get("subject", ()) for word in part]
        subject = "".join(f"/{'CN' if name == 'commonName' else 'O'}={value}" for name, value in words)
        with self.lock:
            if subject not in self.contexts:
                context = ssl.create_default_context(cafile=self.certificate)
                # Newer Pythons want extensions that private authorities seldom have.
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT
                if subject:
                    context.load_cert_chain(*self.make(subject, "extendedKeyUsage=clientAuth\n"))
                self.contexts[subject] = context
            return self.contexts[subject]


class Record:
    """A file with a line of JSON for each thing that was said."""

    def __init__(self, path):
        self.file, self.lock, self.last = open(path, "w"), threading.Lock(), 0

    def number(self):
        with self.lock:
            self.last += 1
            return self.last

    def write(self, number, **what):
        with self.lock:
            self.file.write(json.dumps({"id": number, **what}) + "\n")
            self.file.flush()


class Proxy:
    def __init__(self, listen, upstream, certificates, record):
        self.upstream, self.certificates, self.record = upstream, certificates, record
        self.context = certificates.server(listen[0])
        self.listener = socket.create_server(listen, backlog=64)

    def serve(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.connection, args=(connection,), daemon=True).start()

    def connection(self, connection):
        try:
            with self.context.wrap_socket(connection, server_side=True) as client:
                context = self.certificates.client(client.getpeercert() or {})
                with socket.create_connection(self.upstream) as plain, \
                        context.wrap_socket(plain, server_hostname=self.upstream[0]) as server:
                    asking = Stream(client)
                    answering = Stream(server, asking)
                    while self.exchange(asking, answering):
                        pass
        except (OSError, Ended):
            # One of the two has gone; so does the other.
            pass

    def exchange(self, client, server):
        """A request and its answer; whether there may be another one on this connection."""
        asked = Head(client)
        number, what = self.record.number(), {"method": asked.first[0], "target": asked.first[1]}
        pieces = list(body(client, asked, False))
        sent = b"".join(piece for _, piece in pieces).decode("latin-1")
        self.record.write(number, request={**what, "headers": asked.fields, "body": sent})
        server.send(asked.raw + b"".join(raw for raw, _ in pieces))
        answer = Head(server)
        while answer.first[1].startswith("1") and answer.first[1] != "101":
            client.send(answer.raw)
            answer = Head(server)
        self.record.write(number, answer={"status": int(answer.first[1]), "headers": answer.fields})
        client.send(answer.raw)
        if answer.first[1] == "101":
            return passed_on(client, server)
        if asked.first[0] != "HEAD" and answer.first[1] not in ("204", "304"):
            for raw, meant in body(server, answer, True):
                if meant:
                    self.record.write(number, data=meant.decode("latin-1"))
                client.send(raw)
        self.record.write(number, end=True)
        last = any("close" in head.get("connection").lower() for head in (asked, answer))
        return not last and (answer.chunked() or bool(answer.get("content-length")))


def passed_on(one, other):
    """What comes after an upgrade is no HTTP."""
    other.other = None
    while True:
        for stream in either(one, other):
            (other if stream is one else one).send(stream.some(READ))


def address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


def main(given):
    record = Record(given.record)
    proxy = Proxy(address(given.listen), address(given.server), Certificates(given.authority, given.key), record)
    print("listening", flush=True)
    proxy.serve()
