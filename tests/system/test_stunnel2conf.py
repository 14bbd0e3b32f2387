"""A stunnel.conf to forwards: what each option becomes, and that both programs take what is read and written.

The corpus is stunnel4(8)'s language, an example for each thing that it can say.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from fastfwd.stunnel.command import main
from fastfwd.stunnel.options import GLOBAL, SERVICE
from fastfwd.stunnel.translate import KNOWN
from tests import forwarder
from tests.peers import require_peer
from tests.ports import free_port


@dataclass(frozen=True, slots=True)
class Example:
    """A stunnel.conf, its forwards in order, and what standard error must have; `status` 0: all of it.

    `CERT`, `KEY`, `CA` and `DIR` stand for files and their directory, `PORT` for a free port, in both.
    """

    name: str
    conf: str
    forwards: tuple[str, ...]
    said: tuple[str, ...] = ()
    status: int = 0


SERVER = "cert = CERT\nkey = KEY\n"
OWN = "tls-accept, cert=CERT, key=KEY"

CORPUS = (
    Example(
        "a server",
        f"[imaps]\naccept = 127.0.0.1:PORT\nconnect = 143\n{SERVER}",
        (f"127.0.0.1 PORT localhost 143 [name=imaps, {OWN}]",),
    ),
    Example(
        "every address",
        f"[imaps]\naccept = PORT\nconnect = 192.0.2.1:143\n{SERVER}",
        (f"0.0.0.0 PORT 192.0.2.1 143 [name=imaps, {OWN}]",),
    ),
    Example(
        "IPv6",
        f"[six]\naccept = ::1:PORT\nconnect = ::1:143\n{SERVER}",
        (f"::1 PORT ::1 143 [name=six, {OWN}]",),
    ),
    Example(
        "one file for certificate and key",
        "[one]\naccept = 127.0.0.1:PORT\nconnect = 143\ncert = BOTH\n",
        ("127.0.0.1 PORT localhost 143 [name=one, tls-accept, cert=BOTH]",),
    ),
    Example(
        "a client that verifies nothing",
        "[imap]\nclient = yes\naccept = 127.0.0.1:PORT\nconnect = 192.0.2.1:993\n",
        ("127.0.0.1 PORT 192.0.2.1 993 [name=imap, tls-connect, verify-server=off]",),
        ("warning: stunnel did not verify the server",),
    ),
    Example(
        "a client that verifies chain and name",
        "[imap]\nclient = yes\naccept = 127.0.0.1:PORT\nconnect = 192.0.2.1:993\n"
        "verifyChain = yes\nCAfile = CA\ncheckHost = a.example.org\n",
        ("127.0.0.1 PORT 192.0.2.1 993 [name=imap, tls-connect, server-ca=CA, server-name=a.example.org]",),
    ),
    Example(
        "the name is the host that is dialled",
        "[imap]\nclient = yes\naccept = 127.0.0.1:PORT\nconnect = localhost:993\n"
        "verify = 2\nCAfile = CA\ncheckHost = localhost\n",
        ("127.0.0.1 PORT localhost 993 [name=imap, tls-connect, server-ca=CA]",),
    ),
    Example(
        "an address is verified",
        "[imap]\nclient = yes\naccept = 127.0.0.1:PORT\nconnect = localhost:993\n"
        "verifyChain = yes\nCAfile = CA\ncheckIP = 127.0.0.1\n",
        ("127.0.0.1 PORT localhost 993 [name=imap, tls-connect, server-ca=CA, server-name=127.0.0.1]",),
    ),
    Example(
        "a chain without a name",
        "[imap]\nclient = yes\naccept = 127.0.0.1:PORT\nconnect = localhost:993\nverify = 2\nCAfile = CA\n",
        ("127.0.0.1 PORT localhost 993 [name=imap, tls-connect, server-ca=CA]",),
        ("must be for the host that is dialled",),
        1,
    ),
    Example(
        "another name is asked for than is verified",
        "[imap]\nclient = yes\naccept = 127.0.0.1:PORT\nconnect = localhost:993\n"
        "verifyChain = yes\nCAfile = CA\ncheckHost = localhost\nsni = other.example.org\n",
        ("127.0.0.1 PORT localhost 993 [name=imap, tls-connect, server-ca=CA]",),
        ("asked for the name that is verified",),
        1,
    ),
    Example(
        "a name for who verifies nothing",
        "[imap]\nclient = yes\naccept = 127.0.0.1:PORT\nconnect = 192.0.2.1:993\nsni = mail.example.org\n",
        (
            "127.0.0.1 PORT 192.0.2.1 993 "
            "[name=imap, tls-connect, verify-server=off, server-name=mail.example.org]",
        ),
    ),
    Example(
        "a client with a certificate",
        f"[imap]\nclient = yes\naccept = 127.0.0.1:PORT\nconnect = 192.0.2.1:993\n{SERVER}",
        (
            "127.0.0.1 PORT 192.0.2.1 993 "
            "[name=imap, tls-connect, verify-server=off, client-cert=CERT, client-key=KEY]",
        ),
    ),
    Example(
        "clients must have certificates",
        f"[imaps]\naccept = 127.0.0.1:PORT\nconnect = 143\n{SERVER}CAfile = CA\nverifyChain = yes\n",
        (f"127.0.0.1 PORT localhost 143 [name=imaps, {OWN}, client-ca=CA]",),
    ),
    Example(
        "clients may have certificates",
        f"[imaps]\naccept = 127.0.0.1:PORT\nconnect = 143\n{SERVER}CAfile = CA\nverify = 1\n",
        (f"127.0.0.1 PORT localhost 143 [name=imaps, {OWN}, client-ca=CA, verify-client=optional]",),
    ),
    Example(
        "what is required is said last",
        f"[imaps]\naccept = 127.0.0.1:PORT\nconnect = 143\n{SERVER}CAfile = CA\n"
        "verifyChain = yes\nrequireCert = no\n",
        (f"127.0.0.1 PORT localhost 143 [name=imaps, {OWN}, client-ca=CA, verify-client=optional]",),
    ),
    Example(
        "what is required was said first",
        f"[imaps]\naccept = 127.0.0.1:PORT\nconnect = 143\n{SERVER}CAfile = CA\n"
        "requireCert = no\nverifyChain = yes\n",
        (f"127.0.0.1 PORT localhost 143 [name=imaps, {OWN}, client-ca=CA]",),
    ),
    Example(
        "clients whose certificates are pinned",
        f"[imaps]\naccept = 127.0.0.1:PORT\nconnect = 143\n{SERVER}CAfile = CA\nverifyPeer = yes\n",
        (),
        ("left out: verifyPeer takes the certificates in the file only",),
        1,
    ),
    Example(
        "authorities in a directory",
        f"[imaps]\naccept = 127.0.0.1:PORT\nconnect = 143\n{SERVER}CApath = DIR\nverifyChain = yes\n",
        (),
        ("left out: 'CApath = DIR': put its certificates into one file, and name that with 'client-ca='",),
        1,
    ),
    Example(
        "several backends, in turns",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 192.0.2.1:80\nconnect = 192.0.2.2:8080\n"
        f"connect = 2001:db8::1:80\nfailover = rr\n{SERVER}",
        (f"127.0.0.1 PORT 192.0.2.1,192.0.2.2:8080,[2001:db8::1] 80 [name=web, {OWN}, balance=roundrobin]",),
    ),
    Example(
        "several backends, by priority",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 192.0.2.1:80\nconnect = 192.0.2.2:80\n{SERVER}",
        (f"127.0.0.1 PORT 192.0.2.1,192.0.2.2 80 [name=web, {OWN}, balance=first]",),
    ),
    Example(
        "Unix sockets",
        "[local]\nclient = yes\naccept = DIR/one\nconnect = DIR/two\n",
        ("unix:DIR/one unix:DIR/two [name=local, tls-connect, verify-server=off]",),
    ),
    Example(
        "several certificates",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 8080\n{SERVER}"
        "[other]\nsni = web:*.example.org\nconnect = 8080\ncert = BOTH\n",
        ("127.0.0.1 PORT localhost 8080 [name=web, tls-accept, cert=CERT;BOTH, key=KEY;BOTH]",),
        ("warning: 'sni = web:*.example.org': its certificate is one of 'web''s",),
    ),
    Example(
        "several backends by name",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 8080\n{SERVER}"
        f"[other]\nsni = web:*.example.org\nconnect = 8081\n{SERVER}",
        (f"127.0.0.1 PORT localhost 8080 [name=web, {OWN}]",),
        ("left out: 'sni = web:*.example.org'",),
        1,
    ),
    Example(
        "versions and ciphers",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 80\n{SERVER}sslVersionMin = TLSv1.3\n"
        "ciphers = ECDHE+AESGCM:HIGH\n"
        "options = NO_SSLv3\nrenegotiation = no\nsecurityLevel = 2\n",
        (f"127.0.0.1 PORT localhost 80 [name=web, {OWN}, tls-min=1.3, ciphers=ECDHE+AESGCM:HIGH]",),
    ),
    Example(
        "old versions",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 80\n{SERVER}sslVersion = TLSv1.2\n"
        "options = NO_TICKET\ncurves = X25519\nciphersuites = TLS_AES_128_GCM_SHA256\nsecurityLevel = 1\n",
        (f"127.0.0.1 PORT localhost 80 [name=web, {OWN}]",),
        (
            "not translated: 'sslVersion = TLSv1.2'",
            "not translated: 'options = NO_TICKET'",
            "not translated: 'curves = X25519'",
            "not translated: 'ciphersuites = TLS_AES_128_GCM_SHA256'",
            "not translated: 'securityLevel = 1'",
        ),
        1,
    ),
    Example(
        "the client is announced",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 80\n{SERVER}protocol = proxy\n",
        (f"127.0.0.1 PORT localhost 80 [name=web, {OWN}, send-proxy=v1]",),
    ),
    Example(
        "another protocol",
        f"[mail]\naccept = 127.0.0.1:PORT\nconnect = 25\n{SERVER}protocol = smtp\n",
        (),
        ("left out: 'protocol = smtp'",),
        1,
    ),
    Example(
        "transparent",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 80\n{SERVER}transparent = source\n",
        (f"127.0.0.1 PORT localhost 80 [name=web, {OWN}, transparent=on]",),
    ),
    Example(
        "transparent towards the destination",
        "[web]\nclient = yes\naccept = 127.0.0.1:PORT\ntransparent = destination\n",
        (),
        ("left out: 'transparent = destination'",),
        1,
    ),
    Example(
        "times",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 80\n{SERVER}"
        "TIMEOUTbusy = 20\nTIMEOUTconnect = 5\nTIMEOUTidle = 600\nTIMEOUTclose = 0\n",
        (
            "idle-timeout 600",
            f"127.0.0.1 PORT localhost 80 [name=web, {OWN}, connect-timeout=5, handshake-timeout=20]",
        ),
        ("note: 'TIMEOUTclose = 0'",),
    ),
    Example(
        "sockets",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 192.0.2.1:80\n{SERVER}local = 127.0.0.1\n"
        "socket = l:TCP_NODELAY=1\nsocket = r:SO_KEEPALIVE=0\nsocket = r:SO_BINDTODEVICE=lo\n",
        (f"127.0.0.1 PORT 192.0.2.1 80 [name=web, {OWN}, src=127.0.0.1, keepalive=off, device=lo]",),
    ),
    Example(
        "a program",
        f"[cat]\naccept = 127.0.0.1:PORT\nexec = /bin/cat\nexecArgs = cat\n{SERVER}",
        (),
        ("left out: 'exec = /bin/cat'",),
        1,
    ),
    Example(
        "a shared secret",
        "[psk]\naccept = 127.0.0.1:PORT\nconnect = 80\nPSKsecrets = PSK\n",
        (),
        ("left out: 'PSKsecrets = PSK'",),
        1,
    ),
    Example(
        "where a client is sent",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 80\n{SERVER}"
        "CAfile = CA\nverifyChain = yes\nredirect = 8081\n",
        (f"127.0.0.1 PORT localhost 80 [name=web, {OWN}, client-ca=CA]",),
        ("not translated: 'redirect = 8081'",),
        1,
    ),
    Example(
        "hosts.allow",
        f"[web]\naccept = 127.0.0.1:PORT\nconnect = 80\n{SERVER}libwrap = yes\n",
        (),
        ("left out: 'libwrap = yes'",),
        1,
    ),
    Example(
        "the whole program",
        "; a comment\n# another one\npid = DIR/pid\noutput = DIR/log\ndebug = notice\nforeground = no\n"
        "CLIENT = no\ncert = CERT\nkey = KEY\n\n[ a b ]\n  ACCEPT=127.0.0.1:PORT\nconnect   =   80\n",
        (
            "pidlogfile DIR/pid",
            "logfile DIR/log",
            "idle-timeout 43200",
            f"127.0.0.1 PORT localhost 80 [name=a-b, {OWN}]",
        ),
        ("note: 'debug = notice'", "warning: 'output = DIR/log'"),
    ),
)


@pytest.fixture(scope="module")
def files() -> Iterator[Path]:
    """A directory with a certificate, its key, both in one, its CA, and a shared secret. Its name is short:
    of long lines only the beginning is repeated."""
    with tempfile.TemporaryDirectory() as name:
        yield filled_directory(Path(name))


def filled_directory(directory: Path) -> Path:
    """The same, with what belongs there."""
    authority = trustme.CA()
    made = authority.issue_cert("localhost", "example.org")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    made.private_key_pem.write_to_path(str(directory / "key.pem"))
    made.private_key_and_cert_chain_pem.write_to_path(str(directory / "both.pem"))
    (directory / "cert.pem").write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
    (directory / "psk").write_text(f"somebody:{'0' * 64}\n")
    for path in directory.iterdir():
        path.chmod(0o600)
    return directory


def filled(text: str, files: Path, port: int) -> str:
    """`text` with real names."""
    names = {
        "CERT": "cert.pem",
        "KEY": "key.pem",
        "BOTH": "both.pem",
        "CA": "ca.pem",
        "PSK": "psk",
        "DIR": "",
    }
    for word, name in names.items():
        # Not a part of a longer word, such as the name of a cipher.
        text = re.sub(rf"(?<=[= ;:]){word}(?=[\s;,'/\]]|$)", str(files / name), text)
    return text.replace("PORT", str(port))


@dataclass(frozen=True, slots=True)
class Done:
    """What the command did with an example."""

    file: Path
    status: int
    text: str
    said: str
    port: int

    @property
    def lines(self) -> list[str]:
        """The output without comments."""
        return [line for line in self.text.splitlines() if line and not line.startswith("#")]


@pytest.fixture(params=CORPUS, ids=lambda each: each.name)
def example(request: pytest.FixtureRequest) -> Example:
    """Each of the corpus."""
    assert isinstance(request.param, Example)
    return request.param


@pytest.fixture
def done(example: Example, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Done:
    """The command on the example."""
    port = free_port()
    file = tmp_path / "stunnel.conf"
    file.write_text(filled(example.conf, files, port))
    status = main([str(file)])
    out = capsys.readouterr()
    return Done(file, status, out.out, out.err, port)


def test_the_forwards(example: Example, files: Path, done: Done) -> None:
    """Those that the example says and no others; `idle-timeout` where it says one."""
    wanted = [filled(line, files, done.port) for line in example.forwards]
    if not any(line.startswith("idle-timeout") for line in wanted):
        wanted.insert(0, "idle-timeout 43200")
    assert done.lines == wanted


def test_what_is_said(example: Example, files: Path, done: Done) -> None:
    """On standard error, and as comments; the exit status says whether something was not translated."""
    for text in example.said:
        filled_in = filled(text, files, done.port)
        assert filled_in in done.said
        assert filled_in in done.text
    assert done.status == example.status, done.said
    assert (": not translated: " in done.said or ": left out: " in done.said) == bool(example.status)


def test_fastfwd_takes_it(done: Done, tmp_path: Path) -> None:
    """`fastfwd -t`, with certificates that are there."""
    file = tmp_path / "rinetd.conf"
    file.write_text(done.text)
    checked = forwarder.run("-t", "-c", str(file))
    assert checked.returncode == 0, checked.stderr
    assert "Traceback" not in checked.stderr


def test_stunnel_takes_the_example(done: Done, tmp_path: Path) -> None:
    """The corpus is stunnel's language: the real program starts with it."""
    file = tmp_path / "real.conf"
    text = "\n".join(
        line
        for line in done.file.read_text().splitlines()
        if not re.match("pid|output|debug|foreground", line)
    )
    file.write_text(f"foreground = yes\nsyslog = no\npid =\n{text}\n")
    process = subprocess.Popen(
        [require_peer("stunnel4"), str(file)], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    said: list[str] = []
    assert process.stderr is not None
    with process, process.stderr:
        for line in process.stderr:
            said.append(line)
            if "Configuration successful" in line or "Configuration failed" in line:
                break
        process.terminate()
    assert "Configuration successful" in said[-1], "".join(said)


def converted(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Done:
    """The command on `text`."""
    file = tmp_path / "stunnel.conf"
    file.write_text(text)
    status = main([str(file)])
    out = capsys.readouterr()
    return Done(file, status, out.out, out.err, 0)


def test_the_longest_silence_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is one `idle-timeout`, and who had a shorter one is told."""
    service = "[{0}]\nclient = yes\naccept = {1}\nconnect = 192.0.2.1:1\nTIMEOUTidle = {2}\n"
    done = converted(service.format("a", 1001, 60) + service.format("b", 1002, 90), tmp_path, capsys)
    assert done.lines[0] == "idle-timeout 90"
    assert "not translated: 'TIMEOUTidle = 60'" in done.said
    assert done.status == 1


def test_two_services_on_one_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second one is a comment, with what the forwarder has to say of it."""
    service = "[{0}]\nclient = yes\naccept = 1001\nconnect = 192.0.2.1:1\n"
    done = converted(service.format("a") + service.format("b"), tmp_path, capsys)
    assert [line.split()[4] for line in done.lines[1:]] == ["[name=a,"]
    assert "left out: expected a listener of its own" in done.said


@pytest.mark.parametrize("value", ["/a,b", "/a=b", "/a#b", "/a] [b"])
def test_what_no_option_can_say(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file name with a character that means something else here leaves the service out."""
    text = f"[a]\nclient = yes\naccept = 1001\nconnect = 192.0.2.1:1\ncert = {value}\n"
    done = converted(text, tmp_path, capsys)
    assert done.lines == ["idle-timeout 43200"]
    assert done.status == 1


@pytest.mark.parametrize("slip", ["verify = 5", "verifyChain = true", "requireCert = maybe"])
def test_a_slip_lets_nobody_in(slip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What stunnel would not start with, where it says who is verified, leaves the service out."""
    done = converted(f"[a]\naccept = 1001\nconnect = 1\ncert = /x\nCAfile = /y\n{slip}\n", tmp_path, capsys)
    assert done.lines == ["idle-timeout 43200"]
    assert f"left out: '{slip}': expected one of" in done.said


def test_secrets_stay_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of options that hold one the name is told only."""
    secret = "0123456789abcdef" * 2
    text = (
        f"engineCtrl = PIN:{secret}\nclient = yes\n[a]\naccept = 1\nconnect = 1\nticketKeySecret = {secret}\n"
    )
    done = converted(text, tmp_path, capsys)
    assert "ticketKeySecret" in done.said
    assert secret not in done.said + done.text


def test_other_files_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a directory, in the order of their names, where `include` stands."""
    (tmp_path / "d").mkdir()
    for name, port in (("20-b.conf", 1002), ("10-a.conf", 1001)):
        (tmp_path / "d" / name).write_text(f"[{name}]\naccept = {port}\nconnect = 192.0.2.1:1\n")
    done = converted(f"client = yes\ninclude = {tmp_path}/d\n", tmp_path, capsys)
    assert [line.split()[1] for line in done.lines[1:]] == ["1001", "1002"]


def test_an_unknown_option_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the one that it looks like."""
    done = converted("[a]\nclient = yes\naccept = 1\nconnect = 1\ncyphers = HIGH\n", tmp_path, capsys)
    assert "stunnel.conf:5: not translated: 'cyphers = HIGH': stunnel 5.68 has no such option" in done.said
    assert "did you mean 'ciphers'?" in done.said
    assert done.status == 1


def test_a_line_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told with its place; the others count."""
    done = converted("[a]\nclient = yes\naccept = 1001\nhello\nconnect = 1\n", tmp_path, capsys)
    assert (
        "stunnel.conf:4: not translated: expected 'option = value' or '[service]', found 'hello'" in done.said
    )
    assert len(done.lines) == 2


def test_the_mode_of_inetd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file without a service has no forward."""
    done = converted("exec = /bin/cat\ncert = /x\n", tmp_path, capsys)
    assert done.lines == ["idle-timeout 43200"]
    assert done.status == 1


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and nothing on standard output."""
    assert main([str(tmp_path / "none")]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert "none: No such file or directory" in out.err


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, as argparse has it."""
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_command_is_installed() -> None:
    """Beside fastfwd."""
    command = Path(forwarder.program()[0]).with_name("fastfwd-stunnel2conf")
    done = subprocess.run([command, "-v"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fastfwd ")


GUIDE = Path(__file__).parents[2] / "docs" / "migrating-from-stunnel.md"


@pytest.mark.parametrize("option", sorted({*GLOBAL, *SERVICE, *KNOWN, "pid", "output", "include"}))
def test_the_guide_has_every_option(option: str) -> None:
    """In a row of a table."""
    rows = [
        line.partition(" | ")[0].lower() for line in GUIDE.read_text("utf-8").splitlines() if line[:1] == "|"
    ]
    assert any(f"`{option}`" in row for row in rows)
