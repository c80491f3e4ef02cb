"""A folder with tasks of lm-evaluation-harness, their questions, and a budget that names them."""

import json
from collections.abc import Callable
from pathlib import Path

from pytest_quantbudget.core.files import BUILTIN_DIR

QUESTIONS = 24

WORDS = """
task: words
dataset_path: json
dataset_kwargs:
  data_files: {test: words.jsonl}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer.split('####')[-1].strip()}}"
generation_kwargs: {until: ["Question:"], do_sample: false, max_gen_toks: 64}
filter_list:
  - name: strict-match
    filter:
      - {function: regex, regex_pattern: "#### (\\\\-?[0-9]+)"}
      - {function: take_first}
  - name: flexible-extract
    filter:
      - {function: regex, group_select: -1, regex_pattern: "([0-9]+)"}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""

CHOICES = """
task: choices
dataset_path: json
dataset_kwargs:
  data_files: {test: choices.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{options}}"
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: brier_score, aggregation: brier_score, higher_is_better: false}
"""

BUDGET = """
model: builtin
baseline: fp32
tasks:
  words: {harness: words.yaml, questions: 12, seed: 1}
  choices: {harness: choices.yaml, limit: 20, batch_size: 8}
methods:
  fp32:
    budget: {min_words: 50, min_choices: 1}
  bf16:
    budget: {max_words_drop: 20, max_words_flips: 30, max_choices_drop: 20, max_choices_flips: 20}
"""


def furnished(folder: Path) -> Path:
    rows = [json.loads(line) for line in (BUILTIN_DIR / "questions.jsonl").read_text().splitlines()[:QUESTIONS]]
    choices = []
    for i, row in enumerate(rows):
        gold = row["answer"].rpartition("#### ")[2]
        options = [str(int(gold) + 7), str(int(gold) + 20)]
        options.insert(i % 3, gold)
        choices.append({"question": row["question"], "options": options, "gold": i % 3})
    for name, lines in (("words", rows), ("choices", choices)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "words.yaml").write_text(WORDS)
    (folder / "choices.yaml").write_text(CHOICES)
    (folder / "budget.yaml").write_text(BUDGET)
    return folder


def with_(old: str, new: str) -> Callable[[str], str]:
    def change(source: str) -> str:
        assert old in source
        return source.replace(old, new)

    return change
