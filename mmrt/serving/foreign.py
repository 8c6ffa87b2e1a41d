"""Fields of requests that other servers know, and that would change an answer here if they could.

Nobody is to believe that a field is honoured when it is not: one that is listed here is refused,
unless it asks for what is so anyway. Fields that change no answer (metadata, user,
prompt_cache_key, ...) and those that nobody knows are passed over.
"""

from typing import Any, NamedTuple

from mmrt.serving.fields import Fields
from mmrt.serving.problems import Refused

# What says nothing; 0 is False.
_NOTHING: tuple[Any, ...] = (False, "", [])


class Foreign(NamedTuple):
    """why: it is refused. harmless: values that are not."""

    why: str
    harmless: tuple[Any, ...] = _NOTHING


_UNKNOWN = Foreign("this server does not know it")
_ENDS = "this server has it end by stop strings: say it with stop"
_FORMAT = Foreign("say it with response_format")
_TEXT_ALONE = Foreign("this server reads and makes text alone")
_NO_CUT = "this server cuts no prompts"


def _but(*values: Any) -> Foreign:
    return Foreign(_UNKNOWN.why, (*_NOTHING, *values))


_FIELDS = {
    # ---- OpenAI ----
    "audio": _TEXT_ALONE,
    "functions": Foreign("say it with tools"),
    "function_call": Foreign("say it with tool_choice", ("none",)),
    "web_search_options": Foreign("this server searches nothing"),
    "prediction": Foreign("this server takes no predictions"),
    "suffix": Foreign("this server does not fill in the middle"),
    "truncation": Foreign(_NO_CUT, ("disabled",)),
    # ---- vLLM ----
    "guided_json": _FORMAT,
    "guided_regex": _UNKNOWN,
    "guided_choice": _UNKNOWN,
    "guided_grammar": _UNKNOWN,
    "structured_outputs": _FORMAT,
    "use_beam_search": _UNKNOWN,
    "length_penalty": _but(1),
    "min_tokens": _UNKNOWN,
    "stop_token_ids": Foreign(_ENDS),
    "include_stop_str_in_output": Foreign("an answer ends before it"),
    "skip_special_tokens": Foreign("control tokens are not shown", (True,)),
    "bad_words": _UNKNOWN,
    "allowed_token_ids": _UNKNOWN,
    "logits_processors": _UNKNOWN,
    "truncate_prompt_tokens": Foreign(_NO_CUT, (*_NOTHING, -1)),
    "prompt_logprobs": Foreign("say it with echo and logprobs of /v1/completions"),
    "return_tokens_as_token_ids": _UNKNOWN,
    "chat_template": Foreign("--chat-template gives the server one"),
    "documents": Foreign("say it with chat_template_kwargs"),
    "continue_final_message": _UNKNOWN,
    "add_generation_prompt": Foreign("an answer always begins", (True,)),
    "thinking_token_budget": _but(-1),
    "include_reasoning": Foreign("reasoning is told apart", (True,)),
    "prompt_embeds": Foreign("this server takes texts and token ids"),
    # ---- llama-server ----
    "grammar": Foreign("this server knows JSON schemas, not grammars"),
    "typical_p": Foreign(_UNKNOWN.why, (1,)),
    "mirostat": _UNKNOWN,
    "dry_multiplier": _UNKNOWN,
    "xtc_probability": _UNKNOWN,
    "dynatemp_range": _UNKNOWN,
    "top_n_sigma": _but(-1),
    "min_keep": _but(1),
    "n_indent": _UNKNOWN,
    "t_max_predict_ms": _but(-1),
    "n_probs": Foreign("say it with logprobs"),
    "samplers": _UNKNOWN,
    "lora": _UNKNOWN,
    "image_data": _TEXT_ALONE,
    "n_discard": Foreign(_NO_CUT),
    "id_slot": Foreign("there are no slots: all prompts find what is in memory of them", (-1,)),
    "reasoning_format": Foreign("reasoning is told apart", ("auto", "deepseek")),
    "thinking_budget_tokens": _but(-1),
    "n_predict": Foreign("say it with max_tokens", ()),
    "tfs_z": Foreign(_UNKNOWN.why, (1,)),
    "parse_tool_calls": Foreign("calls are told apart where there are tools", (True,)),
}


def require_known(fields: Fields) -> None:
    """Raises Refused for a field that is not honoured."""
    for name, (why, harmless) in _FIELDS.items():
        if fields.has(name) and fields.get(name) not in harmless:
            field = fields.name(name)
            raise Refused(400, f"{field}: {why}", param=field, code="unsupported_parameter")
