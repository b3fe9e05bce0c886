"""What every column of the store means: one table, from which the data dictionary page is made.

`tests/test_frames.py` holds it equal to `harness.store.TABLES`, so that a new column needs its words here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of a frame. `kind` is text, whole, real or flag; `unit` is empty where a value has none."""

    name: str
    kind: str
    unit: str
    meaning: str


TABLE_MEANINGS = {
    "cases": "One row a case that finished: what was tried, so also what was not.",
    "images": "One row an image of a case, with both right answers for its soft tokens.",
    "audios": "One row a recording of a case.",
    "videos": "One row a video of a case.",
    "observations": "One row a case and subject, and another for the case's probe: what the subject did with it.",
    "verdicts": "One row a property, stage and pair of subjects; left = right where a subject is judged by itself.",
    "divergences": "One row a case, pair and token role: KL of the next-token distributions over those positions.",
    "forecasts": "One row a case, pair and rule: what a training stack would drop of it at the measured difference.",
    "findings": "One row a property that does not hold for a case.",
    "noise": "One row a calibration case and kind: what a subject differs from itself by when nothing is wrong.",
    "comparisons": "One row a model, property, stage and pair over a whole run: effect, interval, floor and verdict.",
}

_KEYS = """
case_id | text | | the case: twelve hex digits of the hash of its content
model | text | | zoo name or checkpoint directory
"""
_MEASURE = """
measured | real | as `unit` | what was measured; empty where nothing could be
limit | real | as `unit` | the largest value that still counts as agreement
unit | text | | the unit of `measured` and `limit`
"""
_PAIR = """
left | text | | the first subject, which is the reference of KL
right | text | | the second subject
"""

_TABLES = {
    "cases": f"""{_KEYS}
form | text | | how the prompt is given: raw text, one user turn, or chat messages
order | text | | the parts in prompt order, a letter each: t text, i image, a recording, v video
probe | text | | the other way that the case is also run; empty for none
companion | text | | the parts of the batch companion, letters as in `order`
dtype | text | | compute type of this case; empty is the run's own
case | text | JSON | the whole case, as a capsule has it
max_soft_tokens | whole | soft tokens | the budget of an image
images | whole | images | images in the prompt
audios | whole | recordings | recordings in the prompt
videos | whole | videos | videos in the prompt
expanded_parts | whole | parts | media written out as begin, soft tokens, end
text_bytes | whole | bytes | UTF-8 length of all text of the prompt
probe_at | whole | | number of the probe: a position, a chunk length, a tensor
expanded | flag | | every medium is written out
system | flag | | has a system turn
tool | flag | | has a tool's declaration, call and answer
ascii | flag | | all text is ASCII
special_tokens | flag | | text holds "<", so perhaps the text of special tokens
""",
    "images": f"""{_KEYS}
index | whole | | number of the image in the prompt, from 0
width_px | whole | px | width of the stored pixels
height_px | whole | px | height of the stored pixels
orientation | whole | | EXIF orientation, 1 to 8; 1 is upright
max_soft_tokens | whole | soft tokens | the budget
reference | whole | soft tokens | the count by the reference rule, float64 as shipped
contract | whole | soft tokens | the count by the exact contract, in integers
mode | text | | colour mode, as Pillow names it
pattern | text | | what the pixels are
exact_ratio | flag | | a scaled side is a whole number of units, where floating point can move the count
""",
    "audios": f"""{_KEYS}
index | whole | | number of the recording in the prompt, from 0
samples | whole | samples | length
rate_hz | whole | Hz | sampling rate
pattern | text | | what the wave is
""",
    "videos": f"""{_KEYS}
index | whole | | number of the video in the prompt, from 0
frames | whole | frames | length
width_px | whole | px | width of a frame
height_px | whole | px | height of a frame
last_index | whole | | number of the last frame that is shown, in the whole video
fps | real | 1/s | frames a second; empty where the video does not say
given | flag | | frames are given with their numbers, not taken from a whole video
indices | text | JSON | the numbers of given frames
pattern | text | | what the frames are
""",
    "observations": f"""{_KEYS}
subject | text | | who ran it
outcome | text | | ok, rejected, crashed, timeout, unavailable or failed
message | text | | the engine's own words, where it was not ok
signature | text | | the message without what differs between cases
counts | text | JSON | predicted, feature_rows, declared_max and medium of each item
digests | text | JSON | stage -> hash of its array
probe | flag | | this is the probe's run
tokens | whole | tokens | length of the expanded prompt
engine_s | real | s | what the engine itself took
""",
    "verdicts": f"""{_KEYS}
property | text | | P1 to P12
stage | text | | where the two are compared
{_PAIR}
verdict | text | | agree, differ or not comparable
{_MEASURE}
reason | text | | why it is not comparable, or what differs
""",
    "divergences": f"""{_KEYS}{_PAIR}
role | text | | role of the positions: text_before, boi, soft, eoi, after_media, rest; or all
n | whole | positions | how many positions
mean | real | nats | mean of KL(left || right)
p50 | real | nats | median of it
p99 | real | nats | 99th percentile
p99_9 | real | nats | 99.9th percentile
max | real | nats | largest
js_mean | real | nats | mean Jensen-Shannon divergence
js_max | real | nats | largest
same_top1 | real | share | positions on which both have the same most probable token
min | real | nats | smallest KL(left || right)
p0_1 | real | nats | 0.1th percentile of it
p1 | real | nats | first percentile
p5 | real | nats | 5th percentile
p10 | real | nats | 10th percentile
p90 | real | nats | 90th percentile
p95 | real | nats | 95th percentile
reverse_mean | real | nats | mean of KL(right || left)
entropy_left | real | nats | mean entropy of left
entropy_right | real | nats | mean entropy of right
top5_shared | real | share | of left's five likeliest tokens, those among right's
tokens | whole | tokens | those that these positions predict and both scored; what follows is over them
gen_kl_error | real | nats | NeMo-RL: mean of exp(r) - r - 1, r = ln P_right - ln P_left
policy_kl_error | real | nats | NeMo-RL: mean of exp(-r) + r - 1
js_divergence_error | real | nats | NeMo-RL: the same estimator to the mixture of both
token_mult_prob_error | real | factor | NeMo-RL: mean of exp(abs(r)), at least 1
kl | real | nats | verl: mean of -r
k3_kl | real | nats | verl: as gen_kl_error
chi2_token | real | chi-squared | verl: mean of exp(2 r), minus 1
ppl_ratio | real | factor | verl: perplexity of right over that of left
rollout_is_eff_sample_size | real | share | verl: effective sample size of the importance weights
rollout_probs_diff_mean | real | probability | verl: mean of abs(P_left - P_right)
rollout_probs_diff_max | real | probability | verl: largest
rollout_probs_diff_std | real | probability | verl: standard deviation
""",
    "forecasts": f"""{_KEYS}{_PAIR}
rule | text | | the mask, truncation or clip of a training stack, were left to generate: docs/metrics.md
level | text | | what it acts on: token or sequence
n | whole | as `level` | how many there are
dropped | whole | as `level` | how many it would mask, truncate or clip
""",
    "findings": f"""{_KEYS}
id | text | | eight hex digits, the same for the same signature and model
signature | text | | property / stage / suspect, or the subjects that differ joined by +
property | text | | the promise that does not hold
stage | text | | where it shows
subjects | text | JSON | who is compared
suspect | text | | the odd one out, `reference` for the rule itself, or `undecided`
detail | text | | what the comparison says
deviation | text | | the known cause; empty where there is none
{_MEASURE}
""",
    "noise": f"""{_KEYS}
subject | text | | whose noise
dtype | text | | compute type
device | text | | cpu or cuda
kind | text | | repeat, batch and chunked are the subject beside itself; anchor is float32 beside float64
n | whole | positions | how many positions
kl_mean | real | nats | mean KL of the two runs
kl_p50 | real | nats | median
kl_p99 | real | nats | 99th percentile
kl_p99_9 | real | nats | 99.9th percentile
kl_max | real | nats | largest
logprob_mean | real | nats | mean difference of the realised tokens' log-probabilities
logprob_p50 | real | nats | median
logprob_p99 | real | nats | 99th percentile
logprob_p99_9 | real | nats | 99.9th percentile
logprob_max | real | nats | largest
feature_max | real | relative error | largest of a feature row; empty without media
kl_histogram | text | JSON | positions by decade of KL: 1e-16 to 1e-15 first, 10 to 100 nats last
logprob_histogram | text | JSON | the same of the differences of log-probabilities
""",
    "comparisons": f"""
model | text | | zoo name or checkpoint directory
property | text | | P1 to P12
stage | text | | where the two are compared
{_PAIR}
dtype | text | | compute type
device | text | | cpu or cuda
unit | text | | unit of effect, interval, floor and smallest_visible
verdict | text | | agree, differ or not comparable, over the whole run
reason | text | | why
cases | whole | cases | how many were compared
effect | real | as `unit` | how far apart the two are
ci_low | real | as `unit` | lower end of its confidence interval
ci_high | real | as `unit` | upper end
floor | real | as `unit` | measured noise: an effect below it is none
p_value | real | | chance of such an effect if only noise were there
q_value | real | | the same, corrected for the number of comparisons
smallest_visible | real | as `unit` | the smallest effect that so many cases would have shown
""",
}


def _parsed(text: str) -> tuple[Column, ...]:
    lines = (line.split(" | ", 3) if " | " in line else [] for line in text.replace(" | | ", " |  | ").splitlines())
    return tuple(Column(*(cell.strip() for cell in cells)) for cells in lines if cells)


COLUMNS: dict[str, tuple[Column, ...]] = {table: _parsed(text) for table, text in _TABLES.items()}
"""Table -> its columns."""
