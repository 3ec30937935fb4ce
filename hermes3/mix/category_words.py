"""Vocabulary and patterns of the rules in hermes3/mix/classify.py, by category. All match lower-cased text."""

import re


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def marks(text: str) -> tuple[str, ...]:
    """Literals between bars; `~` stands for a line break."""
    return tuple(text.replace("~", "\n").split("|"))


def has_any(marks: tuple[str, ...], text: str) -> bool:
    return any(mark in text for mark in marks)


def pattern(*alternatives: str) -> re.Pattern[str]:
    """One search for all; `re` is several times faster where each alternative begins with a letter and not with \\b."""
    return re.compile("|".join(alternatives))


# Tool use, agentic, RAG
TOOL_MARKS = marks("<tools>|<tool_call>|<tool_response>|<functioncall>|<function_call>|<co:|<schema>")
TOOL_SYSTEM = pattern(
    r"json schema\b",
    r"(answer|answers|respond|reply|output) (only )?(in|with) (valid )?json\b",
    r"access to the following (function|tool|api)",
    r"function[- ]calling\b",
    r"call a tool\b",
)
AGENT_TAG = re.compile(
    r"<(scratchpad|restatement|reasoning|thought_1|plan|step_1|execution|reflection|inner_monologue|unit_test)>"
)
DOCUMENTS = pattern(r"document ?:? ?\d+ ?:? title:", r"\[document 1\]", r"<document[^>]*>\s*<")

# Coding
LANGUAGES = words("""
    javascript typescript php sql mysql postgresql sqlite mongodb html css jquery numpy django pytorch tensorflow
    kotlin haskell perl matlab fortran cobol bash powershell regex dockerfile kubernetes github c++ c# f# oop
    node.js express.js vue.js reactjs golang graphql webpack npm localstorage
""")
LANGUAGES_AND_MORE = words("python java ruby rust swift scala dart react angular spark shell excel git pandas flask")
IN_LANGUAGE = marks("in python|in java|in ruby|in rust|in swift|using python|python code")
CODE_NOUNS = words("""
    function program code script class method query snippet error exception algorithm loop array list string
    variable library module package compiler api endpoint component recursion sort codebase debug implement refactor
    syntax object file server integer dictionary input macro app
""")
PROGRAM_NOUNS = words("function algorithm code unit expression api query program script trace traceback complexity")
PROGRAM_ASK = pattern(
    r"\b(?:write|create|implement|develop|design|build|fix|debug|refactor|optimi[sz]e|complete) [^.?!\n]{0,40}"
    r"\b(?:function|algorithm|unit tests?|code|regular expression|rest api|(?:program|script) (?:that|which|in|"
    r"using))\b"
    r"(?! of (?:conduct|ethics))",
    r"\b(?:stack trace|traceback|time complexity|space complexity)\b",
    r"\b(?:in|using|a|with) (?:c|r|go) (?:code|program|function|script)\b",
)
FENCES = marks(
    "```python|```java|```js|```jsx|```ts|```c~|```cpp|```c++|```csharp|```cs|```go~|```rust|```ruby|```php|```sql|"
    "```html|```bash|```sh|```swift|```kotlin|```scala|```r~"
)
CODE_MARKS = marks(
    "~def |~import java|~#include|~package main|~using system|~const |~struct |~create table|public class |"
    "public static |"
    "console.log(|system.out.|int main(|std::|function(|<?php|<!doctype html|</div>|#!/bin/|select * from|"
    "traceback (most recent|=> {|__init__(|print("
)

# Math
MATH_TERMS = words("""
    math maths mathematical arithmetic equation integral derivative polynomial theorem probability algebra geometry
    trigonometry calculus logarithm modulo matrix eigenvalue determinant quadratic factorial prime divisor divisible
    remainder hypotenuse triangle circle radius perimeter circumference rectangle parabola slope vertex sine cosine
    tangent sequence geometric integer fraction decimal percent percentage square root cube exponent inequality
    variable coefficient permutation combination bijective isomorphism subgroup manifold
""")
MATH_TASK = re.compile(
    r"\b(?:solve|simplify|factori[sz]e?|prove that|compute|evaluate|differentiate|integrate|calculate|find the|expand|"
    r"let|"
    r"show that|what is the (?:value|sum|product|difference|probability|area|volume|remainder|average|perimeter))\b"
)
FORMULA = pattern(
    r"\$[^$\n]*[\\^_=][^$\n]*\$",
    r"\\(?:frac|sqrt|int|sum|boxed|begin\{(?:align|equation|matrix)|cdot|mathbb|\(|\[)",
    r"\b\d*[a-z] ?(?:\^ ?\d|²) ?[-+=]",
    r"\b\d+[a-z] ?(?:[-+] ?\d+ ?=|= ?-?\d)",
)
SUM = re.compile(r"\d(?: ?(?:[+*×÷]|plus|minus|times|divided by|multiplied by) ?| [-/] )\d")
SUM_IN_WORDS = pattern(
    *(f"{noun} of \\d" for noun in ("sum", "product", "difference")),
    *(f"{verb} \\d+ (?:and|from|by|to) \\d" for verb in ("add", "subtract", "multiply", "divide", "take")),
    *(stem + r"[^.?\n]{0,20} \d+[-/]\d" for stem in ("calculat", "comput", "solution", "result", "evaluat")),
)
QUANTITY = pattern(
    r"how (?:many|much|long|far|old|fast|tall|big|heavy)\b",
    r"what(?: is|'s| was| will be| would be| are| were) (?:the|his|her|their|its|\w+'s) [^?.\n]{0,60}"
    r"(?:total|average|cost|price|number|amount|sum|difference|percent|age|ratio|profit|length|speed|value|"
    r"weight|score|capacity|volume|height|distance|balance)",
    *(
        verb + r" [^?.\n]{0,40}(?:total|average|number|percentage|fraction|percent|rate|ratio|factor|multiple)\b"
        for verb in ("calculate", "find", "determine", "what")
    ),
)
DIGITS = re.compile(r"\d[\d,.]*")
NUMBERS = words("""
    two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred half twice double
    triple dozen third quarter
""")
RESULT = pattern(r"\\boxed\{", r"\n#### -?\d")

# Roleplaying
NOT_A_CHARACTER = (
    r"(?:an? |the )?(?:(?:\w+ ){0,2}assistant|chat ?bot|(?:ai |large )?language model|ai (?:model|system)|chatgpt|gpt|"
    r"hermes|orca|claude|llama|gemini|mistral|qwen|given|provided|asked|able)\b"
)
NAMED = r"[Yy]ou(?: are|'re) (?!(?i:" + NOT_A_CHARACTER + r"))[A-Z][a-z.]+"  # needs the text as written
NAMED_SYSTEM = re.compile(NAMED)
CHARACTER_SYSTEM = pattern(
    *(r"stay(?:ing)? in character", "in-character", r"role-?\s?play", r"play(?:ing)? the (?:role|part) of"),
    *("inner[ _]monologue", "pretend (?:to be|you)", "act as if you"),
    r"you(?: are|'re) (?:an? |the )?(?:[\w-]+ ){0,2}"
    r"(?:pirate|wizard|witch|knight|dragon|vampire|elf|king|queen|prince|princess|alien|ghost|detective|samurai)\b",
)
TO_DO = (
    r"(?:explain|describe|discuss|provide|write|give|offer|suggest|convince|recount|assess|analy[sz]e|recommend|what|"
    r"how|"
    r"narrate|you)\b"
)
CHARACTER_ASK = re.compile(
    r"\W*(?:(?:hello|hi|please|now)\W+|let's |in an? [\w -]{3,40}, )?(?:"
    r"(?:imagine|suppose|assume|pretend) (?:that )?(?:you(?: are|'re| were|rself)|to be|as)\b"
    r"|you(?: are|'re)(?: now)? (?!" + NOT_A_CHARACTER + r")(?:an?|the|(?:role-?)?playing|\w+'s)\b"
    r"|role-?\s?play|act as\b|be an? |if you were |step into |put yourself |you've become "
    r"|(?:tak(?:e|ing)(?: on)?|play(?:ing)?|assum(?:e|ing)|adopt|in) (?:the|an?) "
    r"(?:role|part|persona|character|identity|voice|perspective|position)\b"
    r"|you (?:have (?:been|just)|find yourself)"
    r"|as (?:an?|the|\w+'s) [^,.\n]{3,80}, (?:\w+ly )?" + TO_DO + r")"
)
NAMED_ASK = re.compile(r"\W*(?:" + NAMED + r"|As [A-Z][\w.' ]{3,40}, " + TO_DO + r")")
PERSPECTIVE = marks(
    "the perspective of|the point of view of|in the voice of|roleplay|role-play|role play|stay in character|"
    "pretend to be|pretend you|want you to act as"
)
ACTION = re.compile(r"^\W?\*(?:\w+ly )?[a-z]+s\b[^*\n]{2,}\*", re.MULTILINE)  # *leans back and smiles*

# Content generation
WRITE_VERBS = words(
    "write compose draft create generate craft pen make come invent produce develop tell continue give need"
)
WRITE = re.compile(
    r"(?:^|[.?!:;,] |\b(?:please|you|me|then|now|and|also|i|i want|i'd like) )(?:"
    + "|".join(sorted(WRITE_VERBS))
    + r")\b"
    r"[^.?!\n]{0,60}?\b(?:poems?|poetry|stor(?:y|ies)|songs?|lyrics|haikus?|limericks?|sonnets?|ballad|verses?|"
    r"two lines|"
    r"blog(?: post)?|articles?|essays?|e-?mails?|letters?|speech|slogans?|taglines?|headlines?|jokes?|novel|chapter|"
    r"film|"
    r"screenplay|dialogues?|monologue|advert(?:isement)?s?|ad copy|press release|product descriptions?|storybook|plot|"
    r"script for|reviews?|captions?|tweets?|(?:instagram|facebook|social media|linkedin) posts?|newsletter|resume|"
    r"fables?|"
    r"fairy ?tales?|(?:short|fictional|imaginary) (?:note|paragraph)|scene|toast|eulogy|greeting card|invitation|"
    r"note to|"
    r"pitch|manifesto|fan ?fiction|metaphors?|riddles?)\b"
)

# Work on a text that the ask brings along
TEXT_TASK = re.compile(
    r"\W*(?:q: ?|please |can you |could you |(?:detailed )?instructions: ?|teacher: ?)?"
    r"(?:summari[sz]e|translate|rewrite|paraphrase|proofread|rephrase|classify|extract|correct|edit|arrange|"
    r"categori[sz]e|in this task|task definition|you(?: are|'re| will be) (?:given|provided)|given the|article|passage|"
    r"process|context|paragraph|premise|sentence|text|document|input|read (?:this|the)|generate a sentence)\b"
)
GIVEN_TEXT = marks(
    "read the article|read the passage|read the following|the following article|the following passage|paragraph below|"
    "passage below|text below|translate to |translate into |translate this|answer:~|"
    "answer to this question is|you will be given"
)

# Steering and alignment
DIRECTIVE = re.compile(
    r"\b(?:(?:always|never|only|must(?: not)?|do not|don't|cannot|refuse to) (?:answer|reply|respond|speak|talk|end|"
    r"begin|"
    r"start|use|say|mention|reveal|refuse|discuss|write|agree|disagree|include|apologi[sz]e|lie)"
    r"|(?:begin|start|end|finish|put|number|give|write|phrase|follow|wrap|close) (?:each|every|all|your) "
    r"(?:answer|repl|response|sentence|message)\w*"
    r"|(?:answer|reply|respond|speak|talk|write) (?:only )?(?:in|with|like|using) "
    r"(?!plain|clear|detail|full|json|english|an accurate|a helpful|a clear)"
    r"|your (?:favou?rite|name is|opinions?|political|moral|religious)|you (?:love|hate|believe|prefer) "
    r"|uncensored|unbiased|sarcastic|sarcasm|rude|grumpy|cheerful|in rhyme|uppercase|lowercase|all caps|emojis?"
    r"|no (?:more|fewer|less) than \w+ (?:words|sentences))\b"
)
SELF = re.compile(
    r"\b(?:are you (?:an? |really |truly |actually )?(?:ai|human|robot|bot|machine|person|conscious|sentient|alive|"
    r"chatgpt|"
    r"self-aware|gpt|hermes|honest|lying|allowed|able to feel|biased)"
    r"|who (?:made|created|built|trained|developed|are) you"
    r"|what(?:'s| is) your (?:name|favou?rite|purpose|opinion|knowledge cut|system prompt|gender|age)"
    r"|(?:do|can|did|will|would) you (?:really |ever |truly )?(?:have (?:feelings|emotions|consciousness|opinions|"
    r"a soul)|"
    r"feel (?:emotions?|pain|lonely|love)|lie|dream|love|hate)"
    r"|your (?:training data|system prompt|instructions|creators?|developers?|guidelines))\b"
)
DENIAL = re.compile(
    r"\s*(?:i'm sorry,? but|i am sorry,? but|i cannot|i can't|sorry,? (?:but )?i|as an (?:ai|artificial))\b"
)

# Domain expert: a term counts 2, a topic 1
TERMS = words("""
    photosynthesis mitosis meiosis enzyme protein genome dna rna chromosome bacteria virus mitochondria ribosome
    neuron neurotransmitter hormone insulin antibody antibodies vaccine pathogen antibiotic anatomy physiology
    pathology diagnosis diagnose symptom etiology prognosis hypertension diabetes cardiovascular carcinoma tumor
    chemotherapy dosage pharmacology clinical surgery epidemiology psychiatry psychology cognitive schizophrenia
    molarity stoichiometry enthalpy entropy thermodynamic catalyst ion isotope covalent oxidation polymer alloy
    viscosity electron proton neutron quantum photon relativity electromagnetic wavelength momentum velocity torque
    nuclear superconductivity semiconductor aerodynamics hydraulics turbine transistor capacitor voltage circuit
    cryptography metallurgy astrophysics galaxy galaxies supernova exoplanet cosmology geology tectonic sediment
    glacier ecosystem ecology biodiversity evolution evolutionary taxonomy fossil plaintiff defendant tort
    jurisprudence constitutional statute statutory liability contract negligence appellate litigation copyright
    patent jurisdiction felony habeas fiduciary inflation macroeconomics microeconomics gdp monetary fiscal
    elasticity keynesian securities amortization depreciation audit accounting tariff equilibrium philosophy
    epistemology ontology metaphysics kant nietzsche aristotle plato utilitarianism deontology stoicism sociology
    anthropology linguistics phonology morphology archaeology theology hermeneutics renaissance feudalism
    colonialism imperialism dynasty empire treaty revolution reformation byzantine ottoman medieval mesopotamia
    bolshevik parliament geopolitics
""")
TOPICS = words("""
    capital river country countries continent currency border province cell gene disease patient treatment drug
    medicine medical blood heart brain cancer energy force mass gravity atom molecule chemical reaction acid
    temperature planet species organism plant law court legal crime rights war battle century ancient king president
    government economy economic market bank investment tax theory theories scientific scientist experiment physics
    chemistry biology history historical historian engineering climate carbon religion culture cultural political
    democracy ethics civilization language earthquake bone muscle vitamin soil ocean atmosphere magnetic radiation
    laser
""")
CHOICE_B = marks("~b|(b| b)| b.")
CHOICES = re.compile(r"(?s)[\n( ]a[.):] ?\S.{0,400}?[\n( ]b[.):] ?\S.{0,400}?[\n( ]c[.):] ?\S")
EXPERT_SYSTEM = pattern(
    *("expert on", "expert in", "professor of", "specialist in", "speciali[sz]ing in", "knowledgeable about"),
    r"you are an? (?:\w+ )?(?:physicist|chemist|biologist|historian|lawyer|attorney|doctor|physician|economist|"
    r"scientist|"
    r"mathematician|engineer|psychologist|philosopher|geologist|astronomer)\b",
)
