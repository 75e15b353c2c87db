"""Query strings that ask for what there is not, or for more than is good."""

from __future__ import annotations

from urllib.parse import quote

from abuse_case import SMALL, Case
from server_process import post

BAD, VALUE = "422 bad_expression", "422 bad_parameter"
UNKNOWN, NO_SUCH, MISSING, TWICE = (
    "422 unknown_operator",
    "422 unknown_parameter",
    "422 missing_parameter",
    "422 repeated_parameter",
)


def query(claim: str, text: str, answers: str = BAD) -> Case:
    """A query string as it stands."""
    return Case(claim, post(SMALL, text), answers)


def op(claim: str, expression: str, answers: str = BAD) -> Case:
    """An expression, percent-encoded."""
    return query(claim, "op=" + quote(expression, safe=""), answers)


def bits(claim: str, text: str, answers: str = VALUE) -> Case:
    """The `k` of `k_bit_quantize`."""
    return query(claim, f"op=k_bit_quantize&k={text}", answers)


QUERIES = [
    query("no query lacks op", "", MISSING),
    query("an empty op is refused", "op="),
    query("op without a value is refused", "op"),
    query("op twice is refused", "op=round&op=round", TWICE),
    query("op twice, once encoded, is refused", "op=round&%6fp=floor", TWICE),
    query("op in large letters is not op", "OP=round", MISSING),
    query("op with brackets is not op", "op[]=round", MISSING),
    query("a semicolon separates nothing", "op=round;x=1", BAD),
    query("10 000 parameters are too long", "op=round" + "&a=1" * 10_000, "414 uri_too_long"),
    query("2 000 parameters are refused", "op=round" + "&a=1" * 2000, NO_SUCH),
    query("4 000 ampersands are nothing", "op=round" + "&" * 4000, "200"),
    query("an encoded NUL is refused", "op=round%00"),
    query("a name that ends with an encoded NUL is refused", "op%00=round", MISSING),
    query("half an escape is refused", "op=round%"),
    query("an escape that is none is refused", "op=%zzround"),
    query("an escape of bytes that are no UTF-8 is refused", "op=%ff%fe"),
    query("an escape of half a surrogate is refused", "op=%ed%a0%80"),
    query("an escape of too many bytes for its letter is refused", "op=%c1%b2ound"),
    query("an escape of an escape is not undone twice", "op=%2572ound"),
    query("letters of full width are no letters", "op=%ef%bd%92ound"),
    query("line breaks for the log are refused", "op=round%0d%0aX-Injected:%201"),
    query("HTML is no operator", "op=%3Cscript%3Ealert(1)%3C/script%3E"),
    query("SQL is no operator", "op=round%27%20OR%201=1--"),
    query("a template is no operator", "op=$%7B7*7%7D"),
    query("a parameter that no operator has is refused", "op=round&k=4", NO_SUCH),
    query("a parameter without a name is refused", "op=round&=4", NO_SUCH),
    query("self is no parameter", "op=k_bit_quantize&k=4&self=1", NO_SUCH),
    query("__class__ is no parameter", "op=k_bit_quantize&k=4&__class__=1", NO_SUCH),
    query("a parameter twice is refused", "op=k_bit_quantize&k=4&k=4", TWICE),
    query("a parameter twice, once encoded, is refused", "op=k_bit_quantize&k=4&%6b=5", TWICE),
    query("a parameter beside an expression is refused", "op=k_bit_quantize(4)&k=4", NO_SUCH),
    query("a parameter beside empty brackets is refused", "op=k_bit_quantize()&k=4", MISSING),
    query("a missing parameter is told", "op=k_bit_quantize", MISSING),
    query("one of two missing parameters is told", "op=clamp&min_value=0", MISSING),
]

NUMBERS = [
    bits("a thousand million bits cost nothing", "1000000000"),
    bits("bits of 18 digits cost nothing", "9" * 18),
    bits("bits of 4 000 digits cost nothing", "9" * 4000),
    bits("bits that the dtype cannot hold are refused", "128", "422 parameter_does_not_fit"),
    bits("no bits are refused", "0"),
    bits("negative bits are refused", "-1"),
    bits("minus zero bits are refused", "-0"),
    bits("bits with a point are refused", "4.0"),
    bits("bits with an exponent are refused", "4e0"),
    bits("bits with a plus are refused", "%2b4", BAD),
    bits("bits with a leading zero are refused", "04", BAD),
    bits("bits in hexadecimal are refused", "0x4", BAD),
    bits("bits with an underscore are refused", "1_0", BAD),
    bits("bits of another script are refused", "%D9%A4", BAD),
    bits("bits in superscript are refused", "%C2%B2", BAD),
    bits("bits within quotes are refused", "%224%22", BAD),
    bits("a list of bits is refused", "[4]", BAD),
    bits("a sum of bits is refused", "2%2b2", BAD),
    bits("true is no number of bits", "true"),
    bits("None is no number of bits", "None"),
    bits("inf is no number of bits", "inf"),
    bits("nan is no number of bits", "nan"),
    bits("nothing is no number of bits", "", BAD),
    bits("a blank is no number of bits", "%20", BAD),
    query("a step of zero is refused", "op=step_quantize&step=0", VALUE),
    query("a negative step is refused", "op=step_quantize&step=-1", VALUE),
    query("an infinite step is refused", "op=step_quantize&step=inf", VALUE),
    query("a step of nan is refused", "op=step_quantize&step=nan", VALUE),
    query("a step that becomes infinite is refused", "op=step_quantize&step=1e999", VALUE),
    query("a step that becomes zero is refused", "op=step_quantize&step=1e-60", "422 parameter_does_not_fit"),
    query("a step of a thousand digits is read", "op=step_quantize&step=0." + "3" * 1000, "200"),
    query("bounds the wrong way round are refused", "op=clamp&min_value=1&max_value=0", VALUE),
    query("a bound of nan is refused", "op=clamp&min_value=nan&max_value=1", VALUE),
    query("a bound beyond the dtype is refused", "op=clamp&min_value=0&max_value=1e300", "422 parameter_does_not_fit"),
    query("a negative eps is refused", "op=clamp_by_linear&eps=-1e-5", VALUE),
    query("a name that tensors may not have is refused", "op=affine_k_bit_quantize&k=2&w=x&b=0", VALUE),
    query("a name of 65 letters is refused", f"op=affine_k_bit_quantize&k=2&w={'w' * 65}&b=0", VALUE),
    query("a tensor that an npy body cannot hold is missing", "op=affine_k_bit_quantize&k=2&w=w&b=0", "422 missing_tensor"),
]

EXPRESSIONS = [
    op("an operator that nobody knows is refused", "sigmoid", UNKNOWN),
    op("an operator in large letters is refused", "ROUND", UNKNOWN),
    op("a dunder is no operator", "__import__", UNKNOWN),
    op("a name of 5 000 letters is no operator", "a" * 5000, UNKNOWN),
    op("a call of a method is refused", "round.forward"),
    op("a call of eval is refused", "eval('1')", UNKNOWN),
    op("brackets that are not closed are refused", "round("),
    op("brackets that were not opened are refused", "round)"),
    op("2 500 opened brackets are refused", "round" + "(" * 2500),
    op("1 200 nested brackets are refused", "(" * 1200 + "round" + ")" * 1200),
    op("operators within operators are refused", "round(round(round()))"),
    op("two operators without a bar are refused", "round floor"),
    op("a bar in front is refused", "|round"),
    op("a bar at the end is refused", "round|"),
    op("two bars are refused", "round||round"),
    op("2 500 bars are refused", "|" * 2500),
    op("32 operators are a chain", "|".join(["round"] * 32), "200"),
    op("33 operators are too many", "|".join(["round"] * 33), "422 chain_too_long"),
    op("1 000 operators are too many", "|".join(["round"] * 1000), "422 chain_too_long"),
    op("a comma without values is refused", "clamp(,)"),
    op("a comma behind the values is refused", "clamp(0,1,)"),
    op("two equal signs are refused", "k_bit_quantize(k==4)"),
    op("a value behind a keyword is refused", "clamp(min_value=0, 1)"),
    op("too many values are refused", "k_bit_quantize(4, 5)", NO_SUCH),
    op("1 000 values are refused", f"round({','.join(['1'] * 1000)})", NO_SUCH),
    op("a value and its keyword are refused", "k_bit_quantize(4, k=4)", TWICE),
    op("a keyword twice is refused", "k_bit_quantize(k=4, k=4)", TWICE),
    op("a keyword that is none is refused", "k_bit_quantize(bits=4)", NO_SUCH),
    op("bits as large as one likes cost nothing in an expression", "k_bit_quantize(1000000000)", VALUE),
    op("a power is refused", "k_bit_quantize(9**9**9)"),
    op("stars are refused", "k_bit_quantize(*k)"),
    op("a lambda is refused", "k_bit_quantize(lambda: 4)"),
    op("text within quotes is refused", "k_bit_quantize('4')"),
    op("a backslash is refused", "round\\"),
    op("a comment is refused", "round # floor"),
    op("a semicolon is refused", "round; floor"),
    op("a blank that is no ASCII is refused", "round\u00a0|\u2003floor"),
    op("a mark that turns the text around is refused", "round\u202e"),
    op("2 000 blanks are blanks", "round" + " " * 2000, "200"),
    op("minus nan is refused", "clamp(-nan, 1)"),
    op("infinity in full is refused", "clamp(-infinity, 1)"),
    op("one tensor for two uses is missing once", "affine_k_bit_quantize(2, w, w)", "422 missing_tensor"),
]

CASES = [*QUERIES, *NUMBERS, *EXPRESSIONS]
