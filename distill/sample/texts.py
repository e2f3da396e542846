"""A few texts of the sample world, where something is to be tried on text and the user gave none."""

import random

from distill.sample.documents import Writer
from distill.sample.skeletons import load_lists, load_topics
from distill.sample.world import build_world


def sample_texts(count: int, *, seed: int = 0) -> list[str]:
    """`count` texts of one to eight sentences, by turns a single sentence and a whole document."""
    topics, lists = load_topics(), load_lists()
    rng = random.Random(f"texts:{seed}")
    writer = Writer(rng, build_world(seed, "dev", lists), lists, ("train", "dev"))
    texts: list[str] = []
    while len(texts) < count:
        sentences = [sentence.text for sentence in writer.document(rng.choice(topics)).sentences]
        texts += sentences[:1] if len(texts) % 2 else ["".join(sentences)] if sentences else []
    return texts
