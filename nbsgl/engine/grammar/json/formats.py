"""The formats that are held to, as sets of strings.

Within a format some spellings are never written, though the standard allows them: leap seconds, internationalised
labels (`xn--`) of host names, host names of more than four labels with one of more than 14 characters, and what
`json.idn` and `json.patterns` name.  A negated format excludes those as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nbsgl.engine.grammar import regex
from nbsgl.engine.grammar.json import idn, patterns
from nbsgl.engine.grammar.syntax import Syntax, concat, either


@dataclass(frozen=True, slots=True)
class Format:
    """`written`: strings of the format; `all`: no fewer than it has, None if no such set is known."""

    written: Syntax
    all: Syntax | None


_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"  # there is no year 0
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_CLOCK = r"T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAYS = rf"(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)(?:{_CLOCK})?"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"


def _host_label(most: int) -> str:
    """A label without `--` in its third and fourth place."""
    alnum, char = "[A-Za-z0-9]", "[A-Za-z0-9-]"
    third = rf"{char}{alnum}(?:{char}{{0,{most - 4}}}{alnum})?"
    fourth = rf"{char}-{alnum}(?:{char}{{0,{most - 5}}}{alnum})?"
    return rf"{alnum}(?:{alnum}|{third}|{fourth})?"


# At most 253 characters, which is too many to count beside 63 a label: four labels, or sixteen short ones.
_HOSTNAME = "|".join(
    [
        rf"(?:{_host_label(63)}\.){{0,3}}{_host_label(61)}",
        _host_label(63),
        rf"{_host_label(14)}(?:\.{_host_label(14)}){{0,15}}",
    ]
)
_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~-"
_ATOM = rf"[{_ATEXT}]+"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_GROUP = r"[0-9A-Fa-f]{1,4}"
_LAST = rf"(?:{_GROUP}:{_GROUP}|{_IPV4})"
_IPV6 = "|".join(
    [
        rf"(?:{_GROUP}:){{6}}{_LAST}",
        *(
            rf"(?:{_GROUP}(?::{_GROUP}){{0,{before - 1}}})?::(?:{_GROUP}:){{{5 - before}}}{_LAST}"
            if before
            else rf"::(?:{_GROUP}:){{5}}{_LAST}"
            for before in range(6)
        ),
        rf"(?:{_GROUP}(?::{_GROUP}){{0,5}})?::{_GROUP}",
        rf"(?:{_GROUP}(?::{_GROUP}){{0,6}})?::",
    ]
)

# RFC 3986, and RFC 3987, which lets other characters stand for themselves.
_UCS = (
    r"\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef\U00010000-\U0001fffd\U00020000-\U0002fffd\U00030000-\U0003fffd"
    r"\U00040000-\U0004fffd\U00050000-\U0005fffd\U00060000-\U0006fffd\U00070000-\U0007fffd\U00080000-\U0008fffd"
    r"\U00090000-\U0009fffd\U000a0000-\U000afffd\U000b0000-\U000bfffd\U000c0000-\U000cfffd\U000d0000-\U000dfffd"
    r"\U000e1000-\U000efffd"
)
_PRIVATE = r"\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd"


def _uri(ucs: str, private: str, is_reference: bool) -> str:
    plain = rf"A-Za-z0-9._~{ucs}\-"
    escaped = r"%[0-9A-Fa-f]{2}"
    char = rf"(?:[{plain}!$&'()*+,;=:@]|{escaped})"
    no_colon = rf"(?:[{plain}!$&'()*+,;=@]|{escaped})"
    user = rf"(?:[{plain}!$&'()*+,;=:]|{escaped})*"
    name = rf"(?:[{plain}!$&'()*+,;=]|{escaped})*"
    host = rf"(?:\[(?:{_IPV6}|[Vv][0-9A-Fa-f]+\.[{plain}!$&'()*+,;=:]+)\]|{name})"
    authority = rf"//(?:{user}@)?{host}(?::[0-9]*)?(?:/{char}*)*"
    absolute = rf"/(?:{char}+(?:/{char}*)*)?"
    tail = rf"(?:\?(?:{char}|[/?{private}])*)?(?:#(?:{char}|[/?])*)?"
    scheme = rf"[A-Za-z][A-Za-z0-9+.-]*:(?:{authority}|{absolute}|{char}+(?:/{char}*)*)?{tail}"
    if not is_reference:
        return scheme
    return rf"{scheme}|(?:{authority}|{absolute}|{no_colon}+(?:/{char}*)*)?{tail}"


_POINTER = r"(?:/(?:[^/~]|~[01])*)*"
_VARNAME = r"(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})(?:\.?(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2}))*(?::[1-9][0-9]{0,3}|\*)?"
_TEMPLATE = (
    rf"(?:[!#$&(-;=?@A-Z\[\]_a-z~{_UCS}{_PRIVATE}]|%[0-9A-Fa-f]{{2}}"
    rf"|\{{[+#./;?&=,!@|]?{_VARNAME}(?:,{_VARNAME})*\}})*"
)
_PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}[Tt]{_TIME}",
    "duration": rf"P(?:[0-9]+W|{_DAYS}|{_CLOCK})",
    "email": rf"(?:{_ATOM}(?:\.{_ATOM})*|{_QUOTED})@(?:{_HOST}|\[(?:{_IPV4}|IPv6:(?:{_IPV6}))\])",
    "hostname": _HOSTNAME,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    "uri": _uri("", "", False),
    "uri-reference": _uri("", "", True),
    "iri": _uri(_UCS, _PRIVATE, False),
    "iri-reference": _uri(_UCS, _PRIVATE, True),
    "uri-template": _TEMPLATE,
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
}


# No fewer than a format has, where something of it is never written.
_WIDER = {
    "time": _TIME.replace(":[0-5][0-9](?", ":(?:[0-5][0-9]|60)(?"),
    "hostname": _HOST,
    "idn-hostname": r"[^\x00-,/:-@\[-`{-\x7f]+",
    "idn-email": ".+@.+",
    "email": rf"(?:{_ATOM}(?:\.{_ATOM})*|{_QUOTED})@(?:{_HOST}|\[[!-Z^-~]+\])",
}
_WIDER["date-time"] = rf"{_DATE}[Tt]{_WIDER['time']}"


@lru_cache(maxsize=32)
def find(name: str) -> Format | None:
    """The strings of a format; None if it is not one of the standard."""
    if name == "regex":
        return Format(patterns.all_patterns(), None)
    if name in ("idn-hostname", "idn-email"):
        host = idn.host(_host_label(idn.MAX_ASCII))
        return Format(host if name == "idn-hostname" else _idn_email(host), _tree(_WIDER[name]))
    if (pattern := _PATTERNS.get(name)) is None:
        return None
    written = _tree(pattern)
    return Format(written, _tree(_WIDER[name]) if name in _WIDER else written)


def _tree(pattern: str) -> Syntax:
    return regex.parse(f"(?s:{pattern})")


def _idn_email(host: Syntax) -> Syntax:
    """As `email`, with letters of any script (RFC 6531)."""
    atom = rf"[{_UCS}{_ATEXT}]+"
    before = rf"(?:{atom}(?:\.{atom})*|{_QUOTED})@"
    return concat([_tree(before), either([host, _tree(rf"\[(?:{_IPV4}|IPv6:(?:{_IPV6}))\]")])])
