"""Small Python functions, printed values, and the scratchpad form of an agentic coding answer."""

from facts import SUMMANDS
from words import Row, combinations, conversation, generator, pick_system

# verb -> (request, expression)
ARITHMETIC = {
    "add": ("adds {n} to x", "x + {n}"),
    "subtract": ("subtracts {n} from x", "x - {n}"),
    "multiply": ("multiplies x by {n}", "x * {n}"),
}
# function name -> (request, expression)
LISTS = {
    "first": ("returns the first of {v}", "{v}[0]"),
    "last": ("returns the last of {v}", "{v}[-1]"),
    "length": ("returns the length of {v}", "len({v})"),
    "total": ("returns the total of {v}", "sum({v})"),
    "largest": ("returns the largest of {v}", "max({v})"),
    "smallest": ("returns the smallest of {v}", "min({v})"),
    "ordered": ("returns {v} in order", "sorted({v})"),
    "backwards": ("returns {v} backwards", "{v}[::-1]"),
}
VARIABLES = ("items", "values", "numbers", "words", "scores", "rows")
REQUESTS = (
    "Write a Python function {name} that {task}.",
    "In Python, define {name}. It {task}.",
    "I need a Python function called {name} that {task}.",
)
AGENT = "You are a coding agent. Plan in a scratchpad, then give solution, explanation and unit test."


def function(name: str, argument: str, expression: str) -> str:
    """Fenced Python definition with one return."""
    return f"```python\ndef {name}({argument}):\n    return {expression}\n```"


def agent_answer(name: str, task: str, expression: str) -> str:
    """Answer in the sections of the report's agentic prompt (Figure 9), cut to one thought and two steps."""
    result = eval(expression, {"__builtins__": {}}, {"x": 2})
    return (
        f"<SCRATCHPAD>\n<RESTATEMENT>\n{name} {task}.\n</RESTATEMENT>\n<PLAN>\n<STEP_1>\nDefine {name}.\n</STEP_1>\n"
        f"<STEP_2>\nReturn {expression}.\n</STEP_2>\n</PLAN>\n</SCRATCHPAD>\n"
        f"<SOLUTION>\n{function(name, 'x', expression)}\n</SOLUTION>\n"
        f"<EXPLANATION>\n{name} {task}.\n</EXPLANATION>\n"
        f"<UNIT_TEST>\n```python\nassert {name}(2) == {result}\n```\n</UNIT_TEST>"
    )


def coding(seed: int) -> list[Row]:
    """Functions on numbers and lists, values that code prints, and agentic answers with a scratchpad."""
    rng = generator(seed, "coding")
    rows = []
    for request, verb, n in combinations(rng, 60, REQUESTS, ARITHMETIC, range(1, 10)):
        task, expression = (text.format(n=n) for text in ARITHMETIC[verb])
        user = request.format(name=f"{verb}_{n}", task=task)
        rows.append(conversation(pick_system(rng), user, function(f"{verb}_{n}", "x", expression)))
    for request, name, variable in combinations(rng, 90, REQUESTS, LISTS, VARIABLES):
        task, expression = (text.format(v=variable) for text in LISTS[name])
        user = request.format(name=name, task=task)
        rows.append(conversation(pick_system(rng), user, function(name, variable, expression)))
    asks = ("What does this print?", "Read the code. What is its output?")
    for ask, left, right in combinations(rng, 50, asks, SUMMANDS, SUMMANDS):
        user = f"{ask}\n```python\nprint({left} + {right})\n```"
        rows.append(conversation(pick_system(rng), user, f"It prints {left + right}."))
    for request, verb, n in combinations(rng, 40, REQUESTS, ARITHMETIC, range(1, 10)):
        task, expression = (text.format(n=n) for text in ARITHMETIC[verb])
        user = request.format(name=f"{verb}_{n}", task=task)
        rows.append(conversation(AGENT, user, agent_answer(f"{verb}_{n}", task, expression)))
    rng.shuffle(rows)
    return rows
