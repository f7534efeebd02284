"""Judge an answer, rewrite it, and say how it really was: python examples/ask_from_python.py [ADDRESS]

The key of a service that needs one is read from GADFLY_KEY.
"""

import os
import sys

from gadfly.client import Client, ServiceUnavailable, TextDelta

QUESTION = "A shirt of 60 euros is 20 percent cheaper today. What does it cost, in euros?"
RESPONSE = "60 - 20 = 40. The answer is 40."


def main(url: str) -> None:
    with Client(url, key=os.environ.get("GADFLY_KEY")) as client:
        judged = client.critique(QUESTION, RESPONSE)
        print(f"critic {judged.critic.version} says: {judged.verdict}")

        # With the id of the critique the rewrite uses it again instead of writing a second one.
        refined = client.refine(QUESTION, RESPONSE, critique_id=judged.critiques[0].id)
        print(f"rewritten: {refined.refined_response}")

        # The same text may be sent as it is generated.
        for event in client.stream_critique(QUESTION, RESPONSE):
            if isinstance(event, TextDelta):
                print(event.text, end="", flush=True)
        print()

        # A label, now or weeks later. The critic learns from it.
        feedback = client.feedback(judged.id, correct=False, reference="48")
        print(f"feedback {feedback.id}: by the reference the answer is {feedback.grade}")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8400")
    except ServiceUnavailable as error:
        sys.exit(str(error))
