"""Fields of requests that other servers know, and that would change an answer here if they could.

Nobody is to believe that a field is honoured when it is not: one that is listed here is refused,
unless it asks for what is so anyway. Fields that change no answer (metadata, user,
prompt_cache_key, ...) and those that nobody knows are passed over.
"""

from typing import Any

from mmrt.serving.kinds import Only

_WHY = "this server does not know it"
_UNKNOWN = Only(_WHY)
_ENDS = "this server has it end by stop strings: say it with stop"
_FORMAT = Only("say it with response_format")
_TEXT_ALONE = Only("this server reads and makes text alone")
_NO_CUT = "this server cuts no prompts"


def _but(*values: Any) -> Only:
    return Only(_WHY, (*Only.NOTHING, *values))


FIELDS = {
    # ---- OpenAI ----
    "audio": _TEXT_ALONE,
    "functions": Only("say it with tools"),
    "function_call": Only("say it with tool_choice", ("none",)),
    "web_search_options": Only("this server searches nothing"),
    "prediction": Only("this server takes no predictions"),
    "suffix": Only("this server does not fill in the middle"),
    "truncation": Only(_NO_CUT, ("disabled",)),
    # ---- vLLM ----
    "guided_json": _FORMAT,
    "guided_regex": _UNKNOWN,
    "guided_choice": _UNKNOWN,
    "guided_grammar": _UNKNOWN,
    "structured_outputs": _FORMAT,
    "use_beam_search": _UNKNOWN,
    "length_penalty": _but(1),
    "min_tokens": _UNKNOWN,
    "stop_token_ids": Only(_ENDS),
    "include_stop_str_in_output": Only("an answer ends before it"),
    "skip_special_tokens": Only("control tokens are not shown", (True,)),
    "bad_words": _UNKNOWN,
    "allowed_token_ids": _UNKNOWN,
    "logits_processors": _UNKNOWN,
    "truncate_prompt_tokens": Only(_NO_CUT, (*Only.NOTHING, -1)),
    "prompt_logprobs": Only("say it with echo and logprobs of /v1/completions"),
    "return_tokens_as_token_ids": _UNKNOWN,
    "chat_template": Only("--chat-template gives the server one"),
    "documents": Only("say it with chat_template_kwargs"),
    "continue_final_message": _UNKNOWN,
    "add_generation_prompt": Only("an answer always begins", (True,)),
    "thinking_token_budget": _but(-1),
    "include_reasoning": Only("reasoning is told apart", (True,)),
    "prompt_embeds": Only("this server takes texts and token ids"),
    # ---- llama-server ----
    "grammar": Only("this server knows JSON schemas, not grammars"),
    "typical_p": Only(_WHY, (1,)),
    "mirostat": _UNKNOWN,
    "dry_multiplier": _UNKNOWN,
    "xtc_probability": _UNKNOWN,
    "dynatemp_range": _UNKNOWN,
    "top_n_sigma": _but(-1),
    "min_keep": _but(1),
    "n_indent": _UNKNOWN,
    "t_max_predict_ms": _but(-1),
    "n_probs": Only("say it with logprobs"),
    "samplers": _UNKNOWN,
    "lora": _UNKNOWN,
    "image_data": _TEXT_ALONE,
    "n_discard": Only(_NO_CUT),
    "id_slot": Only("there are no slots: all prompts find what is in memory of them", (-1,)),
    "reasoning_format": Only("reasoning is told apart", ("auto", "deepseek")),
    "thinking_budget_tokens": _but(-1),
    "n_predict": Only("say it with max_tokens", ()),
    "tfs_z": Only(_WHY, (1,)),
    "parse_tool_calls": Only("calls are told apart where there are tools", (True,)),
}
