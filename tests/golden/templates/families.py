"""Chat templates of the families that people score, for generate.py: the format that each family publishes, written down here.

What is special in each: Llama 2 puts the system message into the first user turn; Llama 3 tells the date; Mistral refuses turns that
do not alternate, and from v0.3 on calls tools; Gemma 1 and 2 have no system role; Qwen writes a system message of its own where
there is none, and lists tools in it; Phi has one line for each turn; gpt-oss (Harmony) tells the date, writes types of tools as TypeScript by
a macro that calls itself, and leaves out thoughts of turns that were answered.
"""

ALTERNATE = """\
{%- for message in turns %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- endfor %}
"""

LLAMA_2_CHAT = (
    """\
{%- if messages and messages[0]['role'] == 'system' %}
{%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
{%- set turns = messages[1:] %}
{%- else %}
{%- set system = '' %}
{%- set turns = messages %}
{%- endif %}
"""
    + ALTERNATE
    + """\
{%- for message in turns %}
{%- set text = (system if loop.first else '') + message['content'] %}
{%- if message['role'] == 'user' %}
{{- bos_token ~ '[INST] ' ~ text.strip() ~ ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{- ' ' ~ text.strip() ~ ' ' ~ eos_token }}
{%- endif %}
{%- endfor %}"""
)

LLAMA_3_1 = """\
{{- bos_token }}
{%- set today = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}
{%- set ns = namespace(system='', first=0) %}
{%- if messages[0].role == 'system' %}
{%- set ns.system = messages[0].content | trim %}
{%- set ns.first = 1 %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools %}{{ 'Environment: ipython\\n' }}{% endif %}
{{- 'Cutting Knowledge Date: December 2023\\nToday Date: ' + today + '\\n\\n' }}
{{- ns.system + '<|eot_id|>' }}
{%- for message in messages[ns.first:] %}
{%- if message.role == 'user' and loop.first and tools %}
{{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
{{- 'Given the following functions, please respond with a JSON for a function call with its proper arguments that best answers the given prompt.\\n\\n' }}
{%- for tool in tools %}{{ tool | tojson(indent=4) }}{{ '\\n\\n' }}{% endfor %}
{{- message.content | trim + '<|eot_id|>' }}
{%- elif message.tool_calls is defined %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' ~ call.name ~ '", "parameters": ' ~ call.arguments | tojson ~ '}<|eot_id|>' }}
{%- elif message.role in ['tool', 'ipython'] %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
{{- (message.content if message.content is string else message.content | tojson) ~ '<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ message.content | trim ~ '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# v0.1 and v0.2 differ in the space before the answer.
MISTRAL_V1 = (
    "{%- set turns = messages %}"
    + ALTERNATE
    + """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{- message['content'] + eos_token + ' ' }}
{%- else %}
{{- raise_exception('Only user and assistant roles are supported!') }}
{%- endif %}
{%- endfor %}"""
)

MISTRAL_V2 = (
    """\
{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] + '\\n\\n' %}
{%- set turns = messages[1:] %}
{%- else %}
{%- set system = '' %}
{%- set turns = messages %}
{%- endif %}
"""
    + ALTERNATE
    + """\
{{- bos_token }}
{%- for message in turns %}
{%- if message['role'] == 'user' %}
{{- ' [INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
{%- else %}
{{- ' ' + message['content'] + eos_token }}
{%- endif %}
{%- endfor %}"""
)

MISTRAL_V3 = """\
{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for message in turns %}
{%- if message['role'] == 'user' %}
{%- if tools is not none and message == users[-1] %}
{{- '[AVAILABLE_TOOLS] [' }}
{%- for tool in tools %}
{%- set function = tool.function %}
{{- '{"type": "function", "function": {' }}
{%- for key, value in function.items() if key != 'return' %}
{{- '"' + key + '": ' + (('"' + value + '"') if value is string else (value | tojson)) }}
{%- if not loop.last %}{{ ', ' }}{% endif %}
{%- endfor %}
{{- '}}' }}
{%- if not loop.last %}{{ ', ' }}{% else %}{{ ']' }}{% endif %}
{%- endfor %}
{{- '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{%- if loop.last and messages[0]['role'] == 'system' %}
{{- '[INST] ' + messages[0]['content'] + '\\n\\n' + message['content'] + '[/INST]' }}
{%- else %}
{{- '[INST] ' + message['content'] + '[/INST]' }}
{%- endif %}
{%- elif message.tool_calls is defined and message.tool_calls is not none %}
{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{%- if call.id is not defined or call.id | length != 9 %}
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif %}
{%- set json = call.function | tojson %}
{{- json[:-1] + ', "id": "' + call.id + '"}' }}
{%- if not loop.last %}{{ ', ' }}{% else %}{{ ']' + eos_token }}{% endif %}
{%- endfor %}
{%- elif message['role'] == 'assistant' %}
{{- ' ' + message['content'] | trim + eos_token }}
{%- elif message['role'] in ['tool', 'tool_results'] %}
{%- set content = message.content.content if message.content is mapping else message.content %}
{{- '[TOOL_RESULTS] {"content": ' + content | string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}
{{- raise_exception('Only user and assistant roles are supported, with the exception of an initial optional system message!') }}
{%- endif %}
{%- endfor %}"""

GEMMA_2 = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

GEMMA_3 = """\
{{ bos_token }}
{%- set prefix = '' %}
{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
{%- set prefix = (messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text']) + '\\n\\n' %}
{%- set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' + (prefix if loop.first else '') }}
{%- if message['content'] is string %}
{{- message['content'] | trim }}
{%- elif message['content'] is iterable %}
{%- for item in message['content'] %}
{%- if item['type'] == 'image' %}{{ '<start_of_image>' }}{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}
{%- endfor %}
{%- else %}
{{- raise_exception('Invalid content type') }}
{%- endif %}
{{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

QWEN_2_5 = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{{- messages[0]['content'] if messages[0]['role'] == 'system' else 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
{{- '\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools %}
{{- '\\n' + tool | tojson }}
{%- endfor %}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- else %}
{%- if messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) or (message.role == 'assistant' and not message.tool_calls) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>' + message.role }}
{%- if message.content %}{{ '\\n' + message.content }}{% endif %}
{%- for tool_call in message.tool_calls %}
{%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
{{- '\\n<tool_call>\\n{"name": "' }}{{ tool_call.name }}{{ '", "arguments": ' }}{{ tool_call.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' }}{{ message.content }}{{ '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Earlier answers lose their thoughts; which are earlier is found from the end.
QWEN_3 = """\
{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(searching=true, last_query=messages | length - 1) %}
{%- for message in messages[::-1] %}
{%- set index = messages | length - 1 - loop.index0 %}
{%- if ns.searching and message.role == 'user' and message.content is string and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
{%- set ns.searching = false %}
{%- set ns.last_query = index %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{%- set content = message.content if message.content is string else '' %}
{%- set thoughts = '' %}
{%- if message.reasoning_content is string %}
{%- set thoughts = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if loop.index0 > ns.last_query and (loop.last or thoughts) %}
{{- '<|im_start|>assistant\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}
{{- '<|im_start|>assistant\\n' + content }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

PHI_3 = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{ '<|system|>\n' + message['content'] + '<|end|>\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

PHI_4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

HARMONY = """\
{#- What a parameter is, as TypeScript says it. -#}
{%- macro type_of(schema) -%}
    {%- if schema.type == "array" -%}
        {{- type_of(schema['items']) if schema['items'] else "any" }}{{ "[]" }}
    {%- elif schema.type is iterable and schema.type is not string and schema.type is not mapping -%}
        {{- schema.type | join(" | ") }}
    {%- elif schema.type == "string" and schema.enum -%}
        {{- '"' + schema.enum | join('" | "') + '"' }}
    {%- elif schema.type in ["integer", "number"] -%}
        {{- "number" }}
    {%- elif schema.type == "object" and schema.properties -%}
        {{- "{" }}
        {%- for name, inner in schema.properties.items() -%}
            {{- name }}{{ "?" if name not in (schema.required or []) }}: {{ type_of(inner) }}{{ ", " if not loop.last }}
        {%- endfor -%}
        {{- "}" }}
    {%- else -%}
        {{- schema.type or "any" }}
    {%- endif -%}
    {%- if schema.nullable %}{{ " | null" }}{% endif -%}
{%- endmacro -%}

{%- macro functions(tools) -%}
    {{- "namespace functions {\\n\\n" }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- "// " + tool.description + "\\ntype " + tool.name + " = (_: {\\n" }}
        {%- for name, schema in tool.parameters.properties.items() %}
            {{- name }}{{ "?" if name not in tool.parameters.required }}: {{ type_of(schema) -}}
            {%- if schema.default is defined %}, // default: {{ schema.default | tojson }}{% endif %}
            {{- ",\\n" }}
        {%- endfor %}
        {{- "}) => any;\\n\\n" }}
    {%- endfor %}
    {{- "} // namespace functions" }}
{%- endmacro -%}

{%- macro system() -%}
    {%- if model_identity is not defined %}
        {%- set model_identity = "You are ChatGPT, a large language model trained by OpenAI." %}
    {%- endif %}
    {{- model_identity + "\\nKnowledge cutoff: 2024-06\\nCurrent date: " + strftime_now("%Y-%m-%d") + "\\n\\n" }}
    {%- if reasoning_effort is not defined %}
        {%- set reasoning_effort = "medium" %}
    {%- endif %}
    {{- "Reasoning: " + reasoning_effort + "\\n\\n" }}
    {%- if builtin_tools %}
        {%- set has = namespace(python=false) %}
        {%- for tool in builtin_tools %}{% if tool == "python" %}{% set has.python = true %}{% endif %}{% endfor %}
        {{- "# Tools\\n\\n" if has.python }}
    {%- endif -%}
    {{- "# Valid channels: analysis, commentary, final. Channel must be included for every message." }}
    {%- if tools -%}
        {{- "\\nCalls to these tools must go to the commentary channel: 'functions'." }}
    {%- endif -%}
{%- endmacro -%}

{{- "<|start|>system<|message|>" }}{{ system() }}{{ "<|end|>" }}
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {%- set instructions = messages[0].content %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set instructions = "" %}
    {%- set turns = messages %}
{%- endif %}
{%- if instructions or tools %}
    {{- "<|start|>developer<|message|>" }}
    {%- if instructions %}{{ "# Instructions\\n\\n" + instructions }}{% endif %}
    {%- if tools %}{{ "\\n\\n# Tools\\n\\n## functions\\n\\n" + functions(tools) }}{% endif %}
    {{- "<|end|>" }}
{%- endif %}
{%- set called = namespace(name=none) %}
{%- for message in turns -%}
    {%- if message.role == 'assistant' -%}
        {%- if "content" in message and "<|channel|>" in message.content %}
            {{- raise_exception("Channels stand in fields of their own, not in the content.") }}
        {%- endif %}
        {%- if "tool_calls" in message %}
            {%- set answered = namespace(yes=false) %}
            {%- for later in turns[loop.index:] %}
                {%- if later.role == 'assistant' and "tool_calls" not in later %}{% set answered.yes = true %}{% endif %}
            {%- endfor %}
            {%- set call = message.tool_calls[0] %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {%- if message.thinking and not answered.yes %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant to=functions." + call.name + "<|channel|>commentary " }}
            {{- (call.content_type if call.content_type is defined else "json") + "<|message|>" }}
            {{- call.arguments | tojson }}{{ "<|call|>" }}
            {%- set called.name = call.name %}
        {%- elif loop.last and not add_generation_prompt %}
            {%- if "thinking" in message %}{{ "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}{% endif %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
            {%- set called.name = none %}
        {%- endif %}
    {%- elif message.role == 'tool' -%}
        {%- if called.name is none %}{{ raise_exception("There was no call before what a tool says.") }}{% endif %}
        {{- "<|start|>functions." + called.name + " to=assistant<|channel|>commentary<|message|>" + message.content | tojson + "<|end|>" }}
    {%- elif message.role == 'user' -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ "<|start|>assistant" }}{% endif %}"""


def message(role, content, **more):
    return {"role": role, "content": content} | more


USER = [message("user", "  How do I sort a list? ")]
SYSTEM = [message("system", "Answer with care."), *USER]
LONG = [*SYSTEM, message("assistant", " Use `sorted`.\n"), message("user", "Grüße! 1 < 2 && 'x'")]
NO_SYSTEM = LONG[1:]
UNEVEN = [message("user", "One."), message("user", "Two.")]
FUNCTION = {"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2.5], "exact": True, "note": None}}
CALLS = [
    message("user", "Rain?"),
    {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdef123", "type": "function", "function": FUNCTION}]},
    message("tool", '{"sky": "<clear>"}', tool_call_id="abcdef123"),
    message("tool", "and 20 degrees", tool_call_id="abcdef123"),
]
THOUGHTS = [
    message("user", "Q1"),
    message("assistant", "<think>\nwell\n</think>\n\nA1"),
    message("user", "Q2"),
    message("assistant", "A2", reasoning_content="\nhm\n"),
]
PARTS = [
    message("system", [{"type": "text", "text": "Look."}]),
    message("user", [{"type": "image"}, {"type": "text", "text": " What is it? "}]),
]
DAY = "2025-03-09"
THINKING = [*USER, {**CALLS[1], "thinking": "The weather is asked for."}, CALLS[2]]
ANSWERED = [*THINKING, message("assistant", "It is dry.", thinking="Dry, it says.")]
NESTED = {"type": "object", "properties": {"at": {"type": ["number", "null"]}, "of": {"type": "array", "items": {"type": "string", "nullable": True}}}, "required": ["at"]}


def with_parameter(tool, name, schema):
    function = tool["function"]
    parameters = function["parameters"] | {"properties": function["parameters"]["properties"] | {name: schema}}
    return tool | {"function": function | {"parameters": parameters}}


def cases(case, tools):
    """`case` makes one, see generate.py; `tools` are some."""
    begin = dict(bos="<|begin_of_text|>", eos="<|eot_id|>")
    gemma = dict(bos="<bos>", eos="<eos>")
    uneven = "roles must alternate"
    return [
        case("llama_2_system", LLAMA_2_CHAT, SYSTEM, prompt=True),
        case("llama_2_long", LLAMA_2_CHAT, LONG, prompt=True),
        case("llama_2_uneven", LLAMA_2_CHAT, UNEVEN, raises=uneven),
        case("llama_3_1", LLAMA_3_1, USER, prompt=True, date=DAY, **begin),
        case("llama_3_1_long", LLAMA_3_1, LONG, prompt=True, date=DAY, **begin),
        case("llama_3_1_tools", LLAMA_3_1, CALLS, prompt=True, date=DAY, tools=tools, **begin),
        case("mistral_v1", MISTRAL_V1, NO_SYSTEM),
        case("mistral_v1_system", MISTRAL_V1, SYSTEM, raises=uneven),
        case("mistral_v2", MISTRAL_V2, LONG),
        case("mistral_v2_uneven", MISTRAL_V2, UNEVEN, raises=uneven),
        case("mistral_v3", MISTRAL_V3, LONG),
        case("mistral_v3_tools", MISTRAL_V3, CALLS, tools=tools),
        case("mistral_v3_call_without_id", MISTRAL_V3, [CALLS[0], {**CALLS[1], "tool_calls": [{"function": FUNCTION}]}], raises="length 9"),
        case("gemma_2", GEMMA_2, NO_SYSTEM, prompt=True, **gemma),
        case("gemma_2_system", GEMMA_2, SYSTEM, raises="System role not supported", **gemma),
        case("gemma_3", GEMMA_3, LONG, prompt=True, **gemma),
        case("gemma_3_parts", GEMMA_3, PARTS, prompt=True, **gemma),
        case("qwen_2_5", QWEN_2_5, USER, prompt=True),
        case("qwen_2_5_long", QWEN_2_5, LONG, prompt=True),
        case("qwen_2_5_tools", QWEN_2_5, CALLS, prompt=True, tools=tools),
        case("qwen_3", QWEN_3, LONG, prompt=True),
        case("qwen_3_thoughts", QWEN_3, THOUGHTS),
        case("phi_3", PHI_3, LONG, prompt=True),
        case("phi_3_without_prompt", PHI_3, USER),
        case("phi_4", PHI_4, LONG, prompt=True),
        case("harmony", HARMONY, USER, prompt=True, date=DAY),
        case("harmony_long", HARMONY, LONG, prompt=True, date=DAY),
        case("harmony_thinking", HARMONY, THINKING, prompt=True, date=DAY, tools=tools),
        case("harmony_answered", HARMONY, ANSWERED, date=DAY, tools=[with_parameter(tools[0], "where", NESTED)]),
        case("harmony_no_call", HARMONY, [*USER, CALLS[2]], date=DAY, raises="no call"),
    ]
