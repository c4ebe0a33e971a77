"""Numbers that say by themselves whether they are what they look like."""

from __future__ import annotations

import re

#: How long an IBAN of each country is (SWIFT's registry of IBANs, ISO 13616).
_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        "([A-Z]{2})([0-9]{2})",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
        "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
        "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
        "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
        "YE30",
    )
}
#: Payment cards by the first digits that networks have, and how many digits each gives (ISO/IEC 7812).
_BRAND = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2}|62[0-9]{2})[0-9]{12,15}"  # Discover, UnionPay
    r"|3(?:0[0-5][0-9]|[689][0-9]{2})[0-9]{10,15}"  # Diners Club
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12,15}|(?:2131|1800)[0-9]{11}"  # JCB
    r"|(?:5018|5020|5038|5[6-8][0-9]{2}|6304|6759|676[1-3])[0-9]{8,15}"  # Maestro
    r"|1[0-9]{14}"  # UATP
)


def is_iban(text: str) -> bool:
    """ISO 13616: as long as those of its country; the country and the check digits at the end, letters as numbers from
    10 on, 1 modulo 97."""
    letters = text.replace(" ", "").upper()
    return (
        _IBAN_LENGTHS.get(letters[:2]) == len(letters)
        and int("".join(str(int(one, 36)) for one in letters[4:] + letters[:4])) % 97 == 1
    )


def passes_luhn(digits: str) -> bool:
    """ISO/IEC 7812: from the right every second digit doubled, its digits added: a multiple of ten."""
    doubled = [int(one) * (1 + place % 2) for place, one in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def has_a_brand(digits: str) -> bool:
    """Whether a network of payment cards has numbers that begin so and are as long."""
    return _BRAND.fullmatch(digits) is not None
