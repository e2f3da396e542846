"""Writes references in one process, over two Ray nodes, and over two of which one dies: one/, ray/, dying/."""

import sys
from pathlib import Path

from ray.cluster_utils import Cluster

from distill.corpus import source
from distill.corpus.reference import write_references


def main() -> None:
    folder, tokenizer_dir = Path(sys.argv[1]), sys.argv[2]
    source.SHARD_CHARS = 300
    texts = sorted(folder.glob("*.txt"))

    def write(name: str, **options: object) -> None:
        outputs = [folder / name / text.name for text in texts]
        write_references(texts, outputs, segmenter="words", tokenizer_dir=tokenizer_dir, **options)  # type: ignore

    write("one")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    write("ray", ray=cluster.address)
    done: list[int] = []

    def progress(characters: int) -> None:
        done.append(characters)
        if len(done) == 3:
            cluster.remove_node(second, allow_graceful=False)

    write("dying", ray=cluster.address, progress=progress)
    cluster.shutdown()


if __name__ == "__main__":
    main()
