"""Our gsm8k and gsm8k_cot against those of lm-evaluation-harness itself, question by question, through its own code.

Its data set is on the hub, so its tasks are taken as they are but for the place of the questions.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Subject, Task
from pytest_quantbudget.engine.hf import load
from pytest_quantbudget.tasks import extraction, prompts, questions
from pytest_quantbudget.tasks.styles import STYLES

lm_eval = pytest.importorskip("lm_eval")

FILES = {"gsm8k": "gsm8k.yaml", "gsm8k_cot": "gsm8k-cot.yaml"}
HARD = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data" / "hard_answers.jsonl").read_text().splitlines()
]
TRAIN = 900  # lines of the real test set that serve as worked examples, because the train set is not at hand
TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
Record = Callable[[str, object], None]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """The library compiles each template anew for every question; this keeps what it compiled."""
    import lm_eval.utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval.utils.env, "from_string", functools.cache(lm_eval.utils.env.from_string))
        yield


@pytest.fixture(scope="module")
def loaded() -> load.Loaded:
    """The built-in model with its tokenizer, which gets a chat template."""
    found = load.load(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), None)
    found.tokenizer.chat_template = TEMPLATE
    return found


class Sides:
    """One task twice: `ours`, and the library's as `theirs`."""

    def __init__(self, name: str, folder: Path, train: list[str], test: list[str]) -> None:
        files = {"train": folder / "train.jsonl", "test": folder / "test.jsonl"}
        for split, lines in (("train", train), ("test", test)):
            files[split].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.style = STYLES[name]
        self.ours = Task(name, None, self.style.shots, 0, str(files["test"]), 256, 1, "strict", name, fewshot="harness")
        if not self.style.examples:
            self.ours = replace(self.ours, shots_file=str(files["train"]))
        self.theirs = self._theirs(name, folder, files)
        self.their_shots: int = self.theirs.config.num_fewshot

    @property
    def asked(self) -> list[prompts.Asked]:
        return sorted(prompts.sample(self.ours), key=lambda each: each.question.index)

    def _theirs(self, name: str, folder: Path, files: dict[str, Path]) -> Any:
        from lm_eval.tasks import TaskManager

        own = Path(lm_eval.__path__[0]) / "tasks" / "gsm8k" / FILES[name]
        config = folder / f"{name}.yaml"
        sets = ", ".join(f"{split}: {json.dumps(str(path))}" for split, path in files.items())
        config.write_text(
            f"include: {own}\ntask: local_{name}\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs: {{data_files: {{{sets}}}}}\n"
        )
        (task,) = TaskManager(include_defaults=False).load([str(config)])["tasks"].values()
        return task

    def shots(self, count: int | None) -> None:
        """Put so many worked examples in front of the questions on both sides; as many as the task has for None."""
        count = self.their_shots if count is None else count
        self.ours = replace(self.ours, shots=count)
        self.theirs.set_config("num_fewshot", count)

    def their_prompts(self, **more: Any) -> list[str]:
        self.theirs.set_fewshot_seed(seed=1234)  # as simple_evaluate does by default
        self.theirs.build_all_requests(limit=None, rank=0, world_size=1, **more)
        return [instance.args[0] for instance in self.theirs.instances]

    def our_prompts(self, tokenizer: Any, **more: Any) -> list[str]:
        prompter = prompts.Prompter(tokenizer, replace(self.ours, **more))
        return [prompter.text(each) for each in self.asked]

    def they_read(self, answers: Iterable[tuple[dict[str, str], str]]) -> list[tuple[Any, ...]]:
        """For each pair of a set's line and an answer to it: both extractions, and both scores."""
        from lm_eval.api.instance import Instance
        from lm_eval.models.utils import postprocess_generated_text

        stops = self.theirs.config.generation_kwargs["until"]
        instances = []
        for doc, text in answers:
            instance = Instance("generate_until", doc, ("", {}), 0)
            instance.resps = [postprocess_generated_text(text, stops, None)]
            instances.append(instance)
        self.theirs._instances = instances
        self.theirs.apply_filters()
        told = []
        for each in instances:
            read = [each.filtered_resps[name] for name in ("strict-match", "flexible-extract")]
            scores = [self.theirs.process_results(each.doc, [found])["exact_match"] for found in read]
            told.append((*read, *map(bool, scores)))
        return told

    def we_read(self, answers: Iterable[tuple[dict[str, str], str]]) -> list[tuple[Any, ...]]:
        """The same of ours, in the order in which `ask` goes."""
        told = []
        for doc, text in answers:
            said = extraction.cut_at_stop(text, self.style.stops)
            read = extraction.strict(said, self.style.strict), extraction.flexible(said)
            target = questions.reference(doc["answer"])
            told.append((*read, *(extraction.same(found, target) for found in read)))
        return told


@pytest.fixture(scope="module", params=["builtin", "gsm8k"])
def lines(request: pytest.FixtureRequest) -> tuple[list[str], list[str]]:
    """Lines of a set of questions: those that worked examples are drawn from, and those that are asked."""
    if request.param == "builtin":
        whole, cut = (BUILTIN_DIR / "questions.jsonl").read_text(encoding="utf-8").splitlines()[:300], 200
    else:
        path = request.getfixturevalue("gsm8k")
        whole, cut = path.read_text(encoding="utf-8").split("\n"), TRAIN
    whole = [line for line in whole if line.strip()]
    return whole[:cut], whole[cut:]


@pytest.fixture(scope="module", params=FILES)
def sides(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, lines: tuple[list[str], list[str]]
) -> Sides:
    """Both tasks on the same questions; where the worked examples are fixed, all of them are asked."""
    train, test = lines
    test = [*train, *test] if STYLES[request.param].examples else test
    return Sides(request.param, tmp_path_factory.mktemp(request.param), train, test)


def differences(record: Record, ours: list[Any], theirs: list[Any]) -> int:
    """How many differ; noted with the number compared."""
    found = sum(bool(a != b) for a, b in zip(ours, theirs, strict=True))
    record("compared", len(ours))
    record("differences", found)
    return found


SHOTS = pytest.mark.parametrize("shots", [None, 0, 1], ids=["as the task", "none", "one"])
SYSTEM = pytest.mark.parametrize("system", [None, "You are careful."], ids=["no system prompt", "system prompt"])


@SHOTS
@SYSTEM
def test_every_prompt_is_the_same(
    sides: Sides, loaded: load.Loaded, record_property: Record, shots: int | None, system: str | None
) -> None:
    sides.shots(shots)
    theirs = sides.their_prompts(system_instruction=system)
    ours = sides.our_prompts(loaded.tokenizer, system_prompt=system)
    assert differences(record_property, ours, theirs) == 0


@SHOTS
@SYSTEM
def test_every_prompt_through_a_chat_template_is_the_same(
    sides: Sides, loaded: load.Loaded, record_property: Record, shots: int | None, system: str | None
) -> None:
    from lm_eval.models.huggingface import HFLM

    sides.shots(shots)
    lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer)
    theirs = sides.their_prompts(
        system_instruction=system,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        chat_template=lm.apply_chat_template,
        tokenizer_name="local",
    )
    ours = sides.our_prompts(loaded.tokenizer, system_prompt=system, chat_template=True)
    assert ours[0].count("<|user|>") == (sides.style.shots if shots is None else shots) + 1
    assert differences(record_property, ours, theirs) == 0


def test_stops_and_number_of_worked_examples_are_the_same(sides: Sides) -> None:
    assert list(sides.style.stops) == sides.theirs.config.generation_kwargs["until"]
    assert sides.style.shots == sides.their_shots
    assert sides.theirs.config.generation_kwargs["do_sample"] is False
    assert sides.theirs.VERSION == 3.0


def variants(answer: str) -> Iterator[str]:
    """A gold answer as it is, in the words of chain of thought, and with mistakes that a model makes."""
    work, _, number = answer.rpartition("#### ")
    yield answer
    yield f"{work} The answer is {number}."
    yield f"{work}#### {number}."
    yield f"{work}#### ${number}"
    yield f"{work}####{number}"
    yield f"{work}#### {number}.00"
    yield f"{work}#### -{number}"
    yield f"{work}#### {number}1"
    yield f"{work}The answer is ${number}, I think"
    yield f"{answer}\n\nQuestion: And 5 more?\nAnswer: 5 + 5\n#### 10"
    yield f"{work} The answer is {number}.\n\nQ: And 5 more?\nA: The answer is 10."
    yield f"{answer}<|im_end|> 7</s>"
    yield answer[: len(answer) // 2]
    yield answer[:-1]
    yield work
    yield answer.replace(" ", "")
    yield f"{answer}\n{answer[::-1]}"


def test_every_answer_is_read_and_scored_the_same(sides: Sides, record_property: Record) -> None:
    answers = [
        ({"question": each.question.question, "answer": each.question.answer}, text)
        for each in sides.asked
        for text in variants(each.question.answer)
    ]
    ours, theirs = sides.we_read(answers), sides.they_read(answers)
    assert {True, False} == {told[2] for told in theirs} == {told[3] for told in theirs}
    assert differences(record_property, ours, theirs) == 0


def test_hard_answers_are_read_and_scored_the_same(sides: Sides, record_property: Record) -> None:
    answers = [
        # The library finds no answer equal to a reference with blanks around it; here they do not count.
        ({"question": hard["id"], "answer": f"It is so.\n#### {gold.strip()}"}, hard["text"])
        for hard in HARD
        for gold in dict.fromkeys((hard["gold"], "18", "-15", "1,234", "$18.", "7"))
    ]
    ours, theirs = sides.we_read(answers), sides.they_read(answers)
    told = [(answer, a, b) for answer, a, b in zip(answers, ours, theirs, strict=True) if a != b]
    assert differences(record_property, ours, theirs) == 0, told
