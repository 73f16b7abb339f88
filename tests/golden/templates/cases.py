"""Conversations, and chat templates that are rendered of them."""

import families

# --------------------------------------------------------------------------------------------------------- conversations


def message(role, content, **more):
    return {"role": role, "content": content} | more


HELLO = [message("user", "Hello!")]
SYSTEM_HELLO = [message("system", "Be brief."), message("user", "Hello!")]
THREE_TURNS = [
    message("system", "  You are a careful helper.\n"),
    message("user", " What is 2 < 3 && 5 > 4?  "),
    message("assistant", "Both are \"true\".\n\n"),
    message("user", "Grüße aus Köln, 東京 🚀 {{ not_a_variable }} {% nor_a_block %}"),
]
PARTS = [
    message("user", [{"type": "text", "text": "First part. "}, {"type": "image"}, {"type": "text", "text": "Second part."}]),
    message("assistant", "Seen."),
    message("user", "Plain text again."),
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather for a city, e.g. \"Zürich\" or <Bern> & 'Genève'",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "enum": ["Zürich", "東京", "a/b\\c"]},
                    "days": {"type": "integer", "default": 3, "maximum": 1.5e16, "minimum": 0.00001},
                    "factor": {"type": "number", "default": 1.0, "nothing": None, "strict": True},
                },
                "required": ["city"],
                "examples": [],
                "extra": {},
            },
        },
    }
]
TOOL_CALLS = [
    message("user", "Weather in Zürich?"),
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}},
            {"type": "function", "function": {"name": "get_time", "arguments": {}}},
        ],
    },
    message("tool", '{"sky": "<clear>"}', name="get_weather"),
]

# ------------------------------------------------------------------------------------------------------------- templates

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""

CHATML_DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message.strip() + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "01 Jan 2000" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message, if there is one, is taken off the front. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start|>system<|end|>\\n\\n" }}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "Functions:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}" }}
    {%- elif message.role == "tool" %}
        {{- "<|start|>result<|end|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""

TOOL_LIST = """\
{%- if tools %}
{{- '<tools>\\n' }}
{%- for tool in tools %}
{{- tool | tojson ~ '\\n' }}
{%- endfor %}
{{- '</tools>' }}
{%- endif %}
{%- for message in messages %}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{%- if call.function is defined %}{% set call = call.function %}{% endif %}
{{- '\\n<call>' ~ call.name ~ '(' }}
{%- for key, value in call.arguments.items() %}
{{- key ~ '=' ~ value | tojson }}{% if not loop.last %}, {% endif %}
{%- endfor %}
{{- ')</call>' }}
{%- endfor %}
{%- elif message.role == 'tool' %}
{{- '\\n<result of="' ~ message.get('name', 'unknown') ~ '">' ~ message.content ~ '</result>' }}
{%- else %}
{{- '\\n' ~ message.role ~ ': ' ~ message.content }}
{%- endif %}
{%- endfor %}"""

MACRO_NAMESPACE = """\
{%- macro turn(role, text, end='<end>') -%}
<{{ role }}>{{ text }}{{ end }}
{% endmacro -%}
{%- set ns = namespace(system='', users=0, last_user=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}{%- set ns.system = ns.system ~ message.content | trim -%}
  {%- elif message.role == 'user' -%}{%- set ns.users = ns.users + 1 -%}{%- set ns.last_user = loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{{ turn('system', ns.system) if ns.system }}
{%- for message in messages if message.role != 'system' -%}
  {{ turn(message.role, message.content, end='<last>' if loop.last else '<end>') }}
{%- endfor -%}
users={{ ns.users }} last={{ ns.last_user }} of {{ messages | length }}
"""

GENERATION = """\
{{ bos_token }}{% for message in messages %}
{%- if message.role == 'assistant' %}
<|assistant|>
{% generation %}
{{ message.content | trim }}{{ eos_token }}{% if not loop.last %}~{% endif %}
{% endgeneration %}
{% else %}
<|{{ message.role }}|>
{{ message.content | trim }}
{% endif %}
{% endfor %}
{%- if add_generation_prompt %}{% generation %}{% endgeneration %}
<|assistant|>
{%- endif %}"""

GENERATION_TIGHT = """\
{%- for message in messages -%}
  {{- '[' ~ message.role ~ ']' -}}
  {%- generation -%}
    {{- message.content -}}
  {%- endgeneration -%}
{%- endfor -%}"""

PARTS_TEMPLATE = """\
{%- for message in messages %}
{{- '<' ~ message.role ~ '>' }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'text' or 'text' in part %}{{ part['text'] | trim }}{% elif part['type'] == 'image' %}{{ '[image ' ~ loop.index ~ ']' }}{% endif %}
{%- endfor %}
{%- endif %}
{%- endfor %}"""

WHITESPACE = """\
  {# a comment on its own line #}
Start
    {% if true %}
  indented text
    {% endif %}
	{% for message in messages %}
 * {{ message.role }}  

    {%+ if loop.first %} kept indent{% endif +%}
    {%- if loop.last %}
      last
    {%- endif %}

	{% endfor %}
{{- ' tight ' -}}   

   end   {{ 'x' }}
{{ 'y' }}

{% raw %}{{ raw }} {% if %}{% endraw %}

"""

PYTHON_STRINGS = """\
{% set text = messages[0].content %}
{{ text.strip() }}|{{ text.lstrip() }}|{{ text.rstrip() }}|{{ text.strip(' .!') }}
{{ text.upper() }}|{{ text.lower() }}|{{ text.title() }}|{{ text.strip().capitalize() }}
{{ text.split() | join('+') }}|{{ text.split('o')[0] }}|{{ text.split('o', 1)[-1] }}|{{ text.split('</think>')[-1].lstrip('\\n') }}
{{ text.startswith('  ') }}|{{ text.endswith('!') }}|{{ text.replace('o', '0') }}|{{ text.replace('o', '0', 1) }}
{{ text.find('world') }}|{{ text.count('o') }}|{{ 'ab12'.isalnum() }}|{{ '12'.isdigit() }}
{{ 'a\\nb\\n'.splitlines() | length }}|{{ ', '.join(['x', 'y']) }}|{{ text[:4] }}|{{ text[-3:] }}|{{ text | length }}
{{ 'prefix' in text }}|{{ 'world' in text }}|{{ 'world' not in text }}|{{ '-' * 5 }}|{{ '%s has %d' % ('x', 3) }}
"""

FILTERS = """\
{% set users = messages | selectattr('role', 'equalto', 'user') | list %}
{% set others = messages | rejectattr('role', 'equalto', 'user') | list %}
{{ users | length }} {{ others | length }} {{ (users | last)['content'] | upper }} {{ (messages | first).role }}
{{ messages | map(attribute='role') | join(', ') }}
{{ messages | map(attribute='role') | unique | sort | join('/') }}
{{ missing | default('fallback') }} {{ '' | default('empty', true) }} {{ messages[0].nothing | default('none') }}
{{ '  x ' | trim }}{{ 'a b' | title }}{{ 'HeLLo' | lower }}{{ 'hello there' | capitalize }}{{ 'aXbX' | replace('X', '-') }}
{{ '42' | int + 1 }} {{ 3.7 | int }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 7 / 2 }} {{ 2 ** 5 }} {{ [3, 1, 2] | sort | join }} {{ [1, 2, 3] | sum }}
{{ ('line one\\nline two') | indent(2) }}
{{ {'b': 1, 'a': 2} | dictsort | map('first') | join }} {{ range(3) | list | length }} {{ [1, 2, 3] | reverse | join(',') }}
{{ messages | selectattr('role', 'in', ['user', 'system']) | list | length }} {{ messages | selectattr('name', 'defined') | list | length }}
"""

TESTS = """\
{{ 'yes' if messages is iterable and messages is not string else 'no' }}
{{ 'yes' if messages[0] is mapping else 'no' }}
{{ 'yes' if messages[0].content is string else 'no' }}
{{ 'yes' if messages is sequence else 'no' }}
{{ 'yes' if tools is defined else 'no' }} {{ 'yes' if tools is none else 'no' }} {{ 'yes' if tools else 'no' }}
{{ 'yes' if missing is defined else 'no' }} {{ 'yes' if missing is undefined else 'no' }} {{ 'yes' if missing else 'no' }}[{{ missing }}]
{{ 'yes' if add_generation_prompt is defined and add_generation_prompt else 'no' }} {{ 'yes' if 3 is number and 3 is odd else 'no' }}
{{ 'yes' if messages[0].get('missing') is none else 'no' }} {{ 'yes' if 'role' in messages[0] else 'no' }} {{ 'yes' if false is boolean else 'no' }}
{{ 'yes' if messages[0]['missing'] is not defined else 'no' }} {{ 'yes' if messages[0].content == '' else 'no' }}
{{ 'yes' if not (1 == 2) and 1 != 2 or false else 'no' }} {{ 1 < 2 <= 2 }} {{ 'b' > 'a' }}
"""

LOOP_CONTROLS = """\
{%- for message in messages %}
{%- if message.role == 'system' %}{% continue %}{% endif %}
{{- loop.index ~ '/' ~ loop.length ~ ' ' ~ message.content.strip() ~ '; ' }}
{%- if loop.revindex0 == 1 %}{%- break %}{% endif %}
{%- else %}never
{%- endfor %}
{%- for x in [] %}{{ x }}{% else %}nothing{% endfor %}
{%- for message in messages[::-1] %} {{ loop.previtem.role if loop.previtem is defined else '^' }}<{{ message.role }}{% endfor %}
{%- for role, group in [('a', [1, 2]), ('b', [])] %} {{ role }}{{ group | length }}{{ loop.cycle('x', 'y') }}{% endfor %}
"""

SET_BLOCK = """\
{%- set header %}
<header>
  {{ messages[0].content | trim }}
</header>
{% endset -%}
{{ header | trim | upper }}
{%- set a, b = 'one', 'two' %}
 {{ a ~ b }}
{%- for message in messages %}{% set a = message.role %}{% endfor %} {{ a }}
{%- with c = a ~ '!' %} {{ c }}{% endwith %} {{ c is defined }}
{%- filter upper %} filtered {{ b }}{% endfilter %}
"""

SLICES = """\
{{ messages[-1]['role'] }} {{ messages[1:][0].role }} {{ messages[:-1] | length }} {{ messages[::2] | length }} {{ messages[-2:][0]['role'] }}
{%- set rest = messages[1:] if messages[0].role == 'system' else messages %}
 {{ rest | length }} {{ (messages + [messages[0]]) | length }} {{ messages[10:] | length }}
{%- if messages[-1].role == 'user' and messages[-1].content[:5] == 'Grüße' %} greets{% endif %}
 {{ 'Grüße 🚀!'[6:7] }} {{ 'Grüße'[::-1] }} {{ 'Grüße 🚀!' | length }}"""

JSON = """\
{{ tools | tojson }}
{{ tools[0].function.parameters | tojson(indent=2) }}
{{ messages[0] | tojson(separators=(',', ':')) }}
{{ {'b': [1, 2.5, true, none], 'a': 'é\\u2028\\x7f\\t'} | tojson(sort_keys=true) }}
{{ {'é': 'ü'} | tojson(ensure_ascii=true) }} {{ 'a"b\\\\c\\u0001' | tojson }} {{ 1.0 | tojson }} {{ 'x' | tojson | length }}
"""

DATES = """{{ strftime_now('%Y-%m-%d') }} {{ strftime_now("%B %d, %Y") }} {{ strftime_now('%A %a %d/%m/%y %H:%M:%S %j') }} {{ strftime_now('%d %b %Y') }}"""

PRINTING = """{{ messages[0].content }} {{ true }} {{ none }} {{ 1.0 }} {{ 10 }} {{ 1e20 }} {{ 0.1 + 0.2 }} {{ 'x' ~ none ~ true ~ 2 }}"""

REASONING = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
  {%- set text = message.content -%}
  {%- set thought = '' -%}
  {%- if message.reasoning_content is defined and message.reasoning_content is not none -%}
    {%- set thought = message.reasoning_content -%}
  {%- elif '</think>' in text -%}
    {%- set thought = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
    {%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
  {%- endif -%}
  <a>{{ '(' ~ thought.strip() ~ ')' if thought }}{{ text }}
{%- else -%}
  <{{ message.role[0] }}>{{ message.content }}
{%- endif -%}
{%- endfor -%}"""

GEMMA_LIKE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start>' + role + '\n' + message['content'] | trim + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start>model\n'}}{% endif %}"
)

MISTRAL_LIKE = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val | tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
            {%- endfor %}
            {{- "] [/TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, not " + message.role | tojson) }}
    {%- endif %}
{%- endfor %}
"""

RECURSIVE = """\
{%- macro show(value, depth=0) -%}
{%- if value is mapping -%}
{%- for key, inner in value.items() %}{{ '\\n' ~ '  ' * depth ~ key ~ ':' }}{{ show(inner, depth + 1) }}{% endfor -%}
{%- elif value is string or value is number -%} {{ value }}
{%- elif value is iterable -%}{% for inner in value %} -{{ show(inner, depth + 1) }}{% endfor -%}
{%- else -%} ?{%- endif -%}
{%- endmacro -%}
{{ show(tools[0]) }}"""


def case(name, template, messages, *, prompt=False, tools=None, date=None, raises=None, bos="<s>", eos="</s>"):
    made = dict(name=name, template=template, bos_token=bos, eos_token=eos, messages=messages)
    if tools is not None:
        made["tools"] = tools
    made["add_generation_prompt"] = prompt
    if date:
        made["date"] = date
    if raises is not None:
        made["raises"] = raises
    return made


NON_ALTERNATING = [message("user", "One."), message("user", "Two.")]
ALTERNATE = "Roles must alternate user/assistant/user/assistant/..."
DAY = "2024-07-26"

CASES = [
    case("chatml", CHATML, THREE_TURNS),
    case("chatml_generation_prompt", CHATML, THREE_TURNS, prompt=True),
    case("chatml_default_system", CHATML_DEFAULT_SYSTEM, HELLO, prompt=True),
    case("chatml_given_system", CHATML_DEFAULT_SYSTEM, SYSTEM_HELLO, prompt=True),
    case("chatml_crlf_template", CHATML.replace("\n", "\r\n"), SYSTEM_HELLO, prompt=True),
    case("llama2_system", LLAMA_2, THREE_TURNS),
    case("llama2_plain", LLAMA_2, HELLO, prompt=True),
    case("llama2_not_alternating", LLAMA_2, NON_ALTERNATING, raises=ALTERNATE),
    case("llama3_date", LLAMA_3, SYSTEM_HELLO, prompt=True, date=DAY, bos="<|begin|>"),
    case("llama3_long", LLAMA_3, THREE_TURNS, date=DAY),
    case("llama3_tools", LLAMA_3, SYSTEM_HELLO, prompt=True, tools=TOOLS, date="2025-01-05"),
    case("llama3_two_calls", LLAMA_3, TOOL_CALLS, date=DAY, raises="This model only supports single tool-calls at once!"),
    case("tool_list", TOOL_LIST, TOOL_CALLS, tools=TOOLS),
    case("tool_list_without_tools", TOOL_LIST, THREE_TURNS),
    case("mistral_like", MISTRAL_LIKE, THREE_TURNS),
    case("mistral_like_tools", MISTRAL_LIKE, THREE_TURNS, tools=TOOLS),
    case("mistral_like_not_alternating", MISTRAL_LIKE, NON_ALTERNATING, raises="roles must alternate"),
    case("gemma_like", GEMMA_LIKE, THREE_TURNS[1:], prompt=True, bos="<bos>"),
    case("gemma_like_system", GEMMA_LIKE, THREE_TURNS, raises="System role not supported"),
    case("macro_namespace", MACRO_NAMESPACE, THREE_TURNS),
    case("macro_recursive", RECURSIVE, HELLO, tools=TOOLS),
    case("generation_blocks", GENERATION, THREE_TURNS, prompt=True),
    case("generation_blocks_tight", GENERATION_TIGHT, THREE_TURNS),
    case("content_parts", PARTS_TEMPLATE, PARTS),
    case("content_parts_printed", "{{ messages[0].content }}", PARTS),
    case("whitespace", WHITESPACE, SYSTEM_HELLO),
    case("python_strings", PYTHON_STRINGS, [message("user", "  hello <b>world</b>, o my!  ")]),
    case("filters", FILTERS, THREE_TURNS),
    case("tests", TESTS, [message("user", "")], prompt=True),
    case("loop_controls", LOOP_CONTROLS, THREE_TURNS),
    case("set_block", SET_BLOCK, THREE_TURNS),
    case("slices", SLICES, THREE_TURNS),
    case("tojson", JSON, THREE_TURNS[3:], tools=TOOLS),
    case("dates", DATES, HELLO, date="2024-02-29"),
    case("printing", PRINTING, [message("assistant", None)]),
    case("reasoning", REASONING, [message("user", "Q"), message("assistant", "<think>\nhm\n</think>\n\nA")]),
    # transformers 5 gives a message's `thinking` to the template as `reasoning_content` too.
    case("reasoning_by_older_name", REASONING, [message("user", "Q"), message("assistant", "A", thinking=" hm ")]),
    case("no_special_tokens", "[{{ bos_token }}]{{ messages[0].content }}[{{ eos_token }}]", HELLO, bos=None, eos=None),
    case("attribute_of_undefined", "{{ messages[0].missing.deeper }}", HELLO, raises=""),
    case("string_plus_none", "{{ 'a' + messages[0].content }}", [message("user", None)], raises=""),
    case("append_is_refused", "{% set _ = messages.append(1) %}{{ messages | length }}", HELLO, raises=""),
    case("syntax_error", "{% if messages %}never closed", HELLO, raises=""),
    *families.cases(case, TOOLS),
]
