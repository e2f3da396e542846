"""`python -m distill`, and the command `distill`."""

import signal


def main() -> None:
    # Ctrl-C ends the imports without a traceback; the command itself has its own handlers.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from distill.cli import main as run

    run()


if __name__ == "__main__":
    main()
