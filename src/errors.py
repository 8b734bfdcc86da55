"""The two kinds of trouble: what an operator can set right, and what is a fault of ours.

`OperatorError` and its children end as a status, with a sentence that says what, where and what to do, and without a
traceback. Anything else that is raised is a fault of the charm's: ops logs the traceback and the hook fails.
"""


class OperatorError(Exception):
    """Something that the operator, or time, can set right; the text is the status."""


class Blocked(OperatorError):
    """Nothing will come right until somebody changes something: the option, the value and the fix are in the text."""


class Waiting(OperatorError):
    """It comes right by itself; the text says what is waited for."""


class ConfigError(Blocked):
    """An option's value cannot be used.

    Args:
        option: the option, as Juju calls it.
        problem: what is wrong with it and what would be right.
    """

    def __init__(self, option: str, problem: str):
        super().__init__(f"{option}: {problem}")
        self.option = option
        self.problem = problem
