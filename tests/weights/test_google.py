"""Google's own addresses: a proxy on the loopback ends TLS and answers for them, because the client recognises Drive by its hosts."""

import functools
import http.server
import shutil
import ssl
import subprocess

import pytest

from fcclip_jax.weights import fetch, table
from tests.weights.service import QUOTA, Service

pytest.importorskip("gdown", reason="downloads from Google Drive (extra: weights)")
HOSTS = ("drive.google.com", "drive.usercontent.google.com")
CONTENT = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Returns a file with a key and a certificate of these hosts."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    options = [
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=test",
        "-addext",
        f"subjectAltName={names}",
    ]
    subprocess.run(
        ["openssl", "req", *options, "-keyout", path, "-out", f"{path}.cert"], check=True, capture_output=True
    )
    path.write_text(path.read_text() + path.with_suffix(".pem.cert").read_text())
    return path


class Proxied(Service):
    """The service as the end of CONNECT tunnels."""

    address = f"https://{HOSTS[1]}"  # where Drive's confirmation leads

    def __init__(self, certificate):
        self.connected: list[str] = []
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        super().__init__()

    def _handler(self):
        plain = super()._handler()

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_CONNECT(handler):
                self.connected.append(handler.path)
                handler.send_response(200)
                handler.end_headers()
                with self._tls.wrap_socket(handler.connection, server_side=True) as connection:
                    plain(connection, handler.client_address, handler.server)
                handler.close_connection = True

        return Handler


@pytest.fixture
def google(certificate, tmp_path, monkeypatch):
    service = Proxied(certificate)
    service.drive["ID1"] = CONTENT
    for name, value in (
        ("HTTPS_PROXY", f"http://127.0.0.1:{service._server.server_port}"),
        ("REQUESTS_CA_BUNDLE", str(certificate)),
        ("FCCLIP_JAX_CACHE", str(tmp_path)),
    ):
        monkeypatch.setenv(name, value)
    for name in ("FCCLIP_JAX_DRIVE", "HF_HUB_OFFLINE", "NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield service
    service.close()


@pytest.fixture
def download():
    entry = table.entry("fcclip_rn50")._replace(source=table.Drive("ID1"))
    return functools.partial(fetch.fetch, entry)


def test_a_confirmation_and_a_cut(google, download):
    google.confirm, google.cuts = True, [600_000]
    assert download().read_bytes() == CONTENT
    assert google.connected == [f"{HOSTS[0]}:443", f"{HOSTS[1]}:443", f"{HOSTS[1]}:443"]
    first, resumed = google.downloads()[-2:]
    assert (first.path, first.range) == ("/download?id=ID1&confirm=t", None)
    assert (resumed.range, resumed.sent) == ("bytes=524288-", len(CONTENT) - 524288)


def test_refusals(google, download):
    google.quota = True
    with pytest.raises(
        OSError, match=rf"^https://{HOSTS[0]} sends a web page instead of fcclip_rn50.pth \({QUOTA[:-1]}\)"
    ):
        download()
    google.quota = False
    google.drive.clear()
    with pytest.raises(OSError, match=rf"^https://{HOSTS[0]} sends a web page .* \(Cannot retrieve the public link"):
        download()
