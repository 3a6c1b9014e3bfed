"""base_url -> Target, and the addresses that are never called."""

from __future__ import annotations

import pytest

from openbr.errors import ConfigError
from openbr.upstream import Target
from openbr.upstream.target import is_loopback


@pytest.mark.parametrize(
    ("base_url", "target", "authority"),
    [
        ("http://127.0.0.1:11434/v1", Target("http", "127.0.0.1", 11434, "/v1"), "127.0.0.1:11434"),
        ("https://API.Example.com/v1/", Target("https", "api.example.com", 443, "/v1"), None),
        ("https://api.example.com.", Target("https", "api.example.com", 443), "api.example.com"),
        ("http://x:80", Target("http", "x", 80), "x"),
        ("https://x:80", Target("https", "x", 80), "x:80"),
        ("http://[::1]:8080/a/b", Target("http", "::1", 8080, "/a/b"), "[::1]:8080"),
        ("https://[2001:DB8::1]", Target("https", "2001:db8::1", 443), "[2001:db8::1]"),
        ("http://bücher.example/", Target("http", "xn--bcher-kva.example", 80), None),
        ("http://h/a b/ç%20", Target("http", "h", 80, "/a%20b/%C3%A7%20"), "h"),
        ("http://2130706433:1", Target("http", "127.0.0.1", 1), "127.0.0.1:1"),
        ("http://under_score.lan", Target("http", "under_score.lan", 80), "under_score.lan"),
        ("http://3com.example", Target("http", "3com.example", 80), "3com.example"),
    ],
)
def test_parse(base_url: str, target: Target, authority: str | None) -> None:
    assert Target.parse(base_url) == target
    if authority is not None:
        assert target.authority == authority


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "api.example.com",
        "ftp://x",
        "http://",
        "http:///v1",
        "http://x:99999",
        "http://x:0",
        "http://a b",
        "http://a\r\nb",
        "http://[fe80::1%eth0]/",
        "http://[::1",
        "http://-a.example",
        "http://x/?q=1",
        "http://x/#f",
    ],
)
def test_what_is_no_address_is_refused(base_url: str) -> None:
    with pytest.raises(ConfigError):
        Target.parse(base_url)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        Target.parse("https://user:canary-secret@api.example.com/v1")
    assert "canary-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1",
        "2852039166",
        "0xa9fea9fe",
        "0xa9.0xfe.0xa9.0xfe",
        "0251.0376.0251.0376",
        "169.254.43518",
        "169.254.169.254.",
        "[fe80::1]",
        "[febf::1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[fd00:ec2::254]",
        "[FD00:EC2:0:0::254]",
        "[fd20:ce::254]",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata",
        "instance-data",
    ],
)
def test_link_local_and_metadata_are_refused(host: str) -> None:
    for url in (f"http://{host}", f"https://{host}:8080/latest"):
        with pytest.raises(ConfigError, match="never called"):
            Target.parse(url)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("localhost.example.com", False),
        ("10.0.0.1", False),
        ("api.example.com", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
