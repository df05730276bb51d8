"""Which language is a text in? By script, and within a script by function words and letters of its own.

For IFEval's instructions about the language of a whole response. The public checker asks langdetect, which always has
an answer; here several languages stay possible where a short text has no function word of any.

What is not seen: languages outside of LANGUAGES of `data.ifeval`, which count as the nearest one of their script.
"""

import re
import unicodedata
from collections import Counter

from rewards.function_words import FUNCTION_WORDS

# Script, as Unicode names its letters -> the languages that are told apart in it.
SCRIPTS = {
    "LATIN": ("en", "es", "pt", "fr", "de", "it", "pl", "vi", "sw", "fi"),
    "CYRILLIC": ("ru", "uk", "bg"),
    "ARABIC": ("ar", "fa", "ur"),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "HEBREW": ("he",),
    "BENGALI": ("bn",),
    "GURMUKHI": ("pa",),
    "GUJARATI": ("gu",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "KANNADA": ("kn",),
    "MALAYALAM": ("ml",),
    "THAI": ("th",),
    "HANGUL": ("ko",),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "CJK": ("zh",),
}
_SCRIPT_OF = {language: script for script, languages in SCRIPTS.items() for language in languages}

_WORDS = {language: frozenset(FUNCTION_WORDS[language]) for language in ("en", "es", "pt", "fr", "de", "it")} | {
    language: frozenset(text.split())
    for language, text in {
        "pl": "i w nie na że się z do to jest jak za od po ale o przez dla są oraz może był być które który która "
        "jego jej ich tak czy tylko już jako aby lub ten ta te co gdy więc także bardzo",
        "vi": "và của là có không các trong được một cho những với người để khi đã này từ cũng như nhưng hay về bạn "
        "tôi ra sẽ rất nhiều thì vào đó",
        "sw": "na ya wa kwa ni katika za la kuwa hii huo hiyo cha kama lakini pia au hivyo yako yangu wake wao sana "
        "ili kwamba mimi wewe sisi hizi hilo kila bila huu watu",
        "fi": "ja on ei että se hän oli olla myös mutta kun jos tai sekä kuin niin ovat joka jotka tämä nämä sen "
        "hänen mitä mukaan voi vain ole siitä minä sinä hyvin",
        "ru": "и в не на что с по это как для к из у за от его но так же все она было бы то мы вы они или ее её их "
        "если при только чтобы я он также может",
        "uk": "і в не на що з та до як це для за від його але так її ми ви вони або їх якщо при тільки щоб є був "
        "була у про я він який також може",
        "bg": "и в не на че с по това как за от до се да е са го но така или ще във със който която които той тя "
        "ние те ако при само бъде съм може има",
        "ar": "في من على إلى أن هذا هذه التي الذي مع عن ما لا كان كانت هو هي و أو بعد قد كل ذلك بين عند ثم لم لن إن",
        "fa": "و در به از که این را با است آن برای یک خود تا می شد بر هم نیز اما یا بود دارد کند ها هر شما",
        "ur": "کے کی کا میں ہے اور سے کو یہ ہیں پر نے کہ ایک اس تھا بھی نہیں کر جو ہو وہ لیے آپ تو گا گے",
        "hi": "है हैं का की के में से को और यह था थी थे नहीं पर कि जो हो लिए ने भी तो कर रहा रही रहे वह इस उस अपने होता होती",
        "mr": "आहे आहेत आणि च्या ची चा चे मध्ये होते नाही हे ही हा ती ते या साठी केले करणे पण तर असे असतो असते त्या मी आपण",
        "ne": "छ छन् र यो त्यो पनि हुन्छ लागि गर्न गर्ने भएको हो थियो गरेको छैन तपाईं हामी भने तथा वा हुन् गर्छ मेरो",
    }.items()
}
# Letters that only one language of the script has.
_LETTERS = {
    **dict.fromkeys("ąęłńśźżĄĘŁŃŚŹŻ", "pl"),
    **dict.fromkeys("ăđơưĂĐƠƯ", "vi"),
    **dict.fromkeys(map(chr, range(0x1EA0, 0x1EFA)), "vi"),
    **dict.fromkeys("ыэёЫЭЁ", "ru"),
    **dict.fromkeys("іїєґІЇЄҐ", "uk"),
    **dict.fromkeys("ٹڈڑںھہے", "ur"),
    "ळ": "mr",
}
_SPLIT = re.compile(r"[\s!-/:-@\[-`{-~।॥؟،؛…«»“”„‘’—–¿¡]+")


def is_written_in(text: str, language: str) -> bool:
    """Whether most letters are of the script of `language`, and no other language of the script has more evidence.

    True for a text without letters, as nothing speaks against it. Raises ValueError for a language not known here.
    """
    if language not in _SCRIPT_OF:
        raise ValueError(f"is_written_in knows {', '.join(sorted(_SCRIPT_OF))}, not {language!r}.")
    script = _script(text)
    if script is None:
        return True
    if language not in SCRIPTS[script]:
        return False
    evidence = _evidence(text, script)
    return evidence[language] == max(evidence.values(), default=0)


def _script(text: str) -> str | None:
    """The script of most letters; Japanese is written in three, so kana take Han characters along."""
    letters = Counter(text)
    counts: Counter[str] = Counter()
    for letter, count in letters.items():
        script = unicodedata.name(letter, "").partition(" ")[0] if letter.isalpha() else ""
        if script in SCRIPTS:
            counts["HIRAGANA" if script == "KATAKANA" else script] += count
    if counts["HIRAGANA"]:
        counts["HIRAGANA"] += counts.pop("CJK", 0)
    return max(counts, key=lambda script: counts[script]) if counts.total() else None


def _evidence(text: str, script: str) -> Counter[str]:
    """Language -> function words of it, and words with letters that only it has. None has any: all are possible."""
    languages = SCRIPTS[script]
    if len(languages) == 1:
        return Counter(languages)
    evidence = Counter(dict.fromkeys(languages, 0))
    for word, count in Counter(_SPLIT.split(text.lower())).items():
        evidence.update({language: count for language in languages if word in _WORDS[language]})
        evidence.update(dict.fromkeys({_LETTERS[letter] for letter in word if letter in _LETTERS}, count))
    return evidence
