"""Flows of your own, which call those of pollux_flows. Try one: python flows.py"""

from prefect import flow

from pollux_flows import Source
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import fan_out

REPORT = "The north plant made 1,200 pumps in March, 4% fewer than planned. Two presses stood still for a week."
QUESTIONS = ["How many pumps were made?", "What should the board know?"]


@flow(log_prints=True)
def ask_about_report(questions: list[str] = QUESTIONS, provider: str = "simulated") -> dict[str, str]:
    """Ask questions about a report, all at once. A retry asks only those that have no answer yet."""
    saved = PolluxProvider.load(provider)
    envelope = fan_out(questions, saved, sources=[Source.from_text(REPORT)])
    answers = dict(zip(questions, envelope.answers, strict=True))
    for question, answer in answers.items():
        print(f"{question} {answer}")
    return answers


if __name__ == "__main__":
    ask_about_report()
