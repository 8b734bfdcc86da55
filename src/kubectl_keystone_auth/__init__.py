"""kubectl-keystone-auth: turns an OpenStack login into a token for kubectl.

It runs on a user's machine at each call of kubectl, so with a token at hand it imports next to nothing: `main`,
`options`, `cache` and `errors` load no module that the interpreter has not loaded itself. It imports nothing of the
charm's and of the authenticator's.
"""

__version__ = "0.1.0"
