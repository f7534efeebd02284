"""The lab's tokenizer: numbers and the phrases of a critique as single tokens, and bytes for everything else."""

import random

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gadfly.lab import world

END, USER, ASSISTANT, PAD = "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"
SPECIAL = (PAD, USER, ASSISTANT, END)

PHRASES = (
    *(" + ", " - ", " * ", " = ", ". ", "The answer is "),
    *("Step sentence: ", "\nStep sentence: ", "\nExplanation: ", "\nCorrectness of the step:"),
    *("\nCorrectness of the final answer:", " Correct", " Wrong", "Question: ", "\nSolution: "),
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ ('{ASSISTANT}' if message['role'] == 'assistant' else '{USER}') + message['content'] + '{END}' }}}}"
    f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)

_VOCABULARY = 448
_MAX_TOKENS = 1024


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer. It is the same every time, since its vocabulary is learned from a fixed sample of the world."""
    rng = random.Random(0)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),  # a token may span words
        ]
    )
    words.decoder = decoders.ByteLevel()
    words.train_from_iterator(
        (world.problem(rng).text for _ in range(2000)),
        trainers.BpeTrainer(
            vocab_size=_VOCABULARY,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    numbers = map(str, range(10, world.LARGEST_WRITTEN + 1))
    words.add_tokens([AddedToken(text, normalized=False) for text in (*PHRASES, *numbers)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=_MAX_TOKENS,
    )
