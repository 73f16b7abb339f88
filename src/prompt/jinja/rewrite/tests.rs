use super::rewrite;

#[test]
fn what_jinja_reads_alike_stays_as_it_is() {
    for source in [
        "",
        "plain { text } with { % no tags",
        "{{ a[\"b\"] | c(d=1) }}{% if x -%} y {%- endif +%}",
        "{# '{% generation %} #}{% raw -%}{{ 'a' 'b' }}{% generation %}{%- endraw -%}",
        "{{ {\"a\": {\"b\": \"}}\"}} }} text }} %}",
        "{{ a % b }}",
    ] {
        assert_eq!(rewrite(source), source);
    }
}

#[test]
fn generation_tags_become_scopes_with_the_same_whitespace_control() {
    assert_eq!(
        rewrite("{% generation %}a{%endgeneration%}{%-  generation -%}b{%+ endgeneration\n+%}"),
        "{% with %}a{%endwith%}{%-  with -%}b{%+ endwith\n+%}"
    );
    assert_eq!(
        rewrite("{% set generation = 1 %}{{ generation }}"),
        "{% set generation = 1 %}{{ generation }}"
    );
}

#[test]
fn raw_blocks_keep_their_first_line_break() {
    assert_eq!(rewrite("{% raw %}\n{{ x }}{% endraw %}"), "{% raw +%}\n{{ x }}{% endraw %}");
}

#[test]
fn line_endings_are_line_feeds() {
    assert_eq!(rewrite("a\r\nb\rc\n{{ 'x\r\n' }}"), "a\nb\nc\n{{ \"x\n\" }}");
}

#[test]
fn string_literals_mean_what_they_mean_in_python() {
    assert_eq!(rewrite(r#"{{ 'it\'s "x"' }}"#), r#"{{ "it's \"x\"" }}"#);
    assert_eq!(rewrite(r"{{ '\n\t\\\x41\u00e9' }}"), r#"{{ "\n\t\\\x41\u00e9" }}"#);
    assert_eq!(rewrite(r"{{ '\/\d' }}"), r#"{{ "\\/\\d" }}"#);
    assert_eq!(rewrite(r"{{ '\U0001F680\7\101x' }}"), r#"{{ "🚀\u0007\u0041x" }}"#);
    assert_eq!(rewrite("{{ 'a' \"b\"\n'c' }}"), "{{ \"abc\" \n }}");
}

#[test]
fn percent_formats_what_follows_it() {
    assert_eq!(
        rewrite("{{ '%s' % x.y[0](1) | upper ~ z }}"),
        "{{ \"%s\" |_percent( x.y[0](1) | upper) ~ z }}"
    );
    assert_eq!(rewrite("{{ '%s %d' % (a, -1) }}"), "{{ \"%s %d\" |_percent( (a, -1)) }}");
    assert_eq!(rewrite("{{ '%s' % -1 + 2 }}"), "{{ \"%s\" |_percent( -1) + 2 }}");
    assert_eq!(rewrite("{{ '%s' % ('%d' % 1) }}"), "{{ \"%s\" |_percent( (\"%d\" |_percent( 1))) }}");
    assert_eq!(rewrite("{% if '%s' % x %}"), "{% if \"%s\" |_percent( x) %}");
}

#[test]
fn unfinished_sources_are_left_to_the_compiler() {
    for source in ["{{ 'a", "{% if", "{# a", "{% raw %}{{", "{{ '\\", "{{ (((", "{"] {
        assert_eq!(rewrite(source), source);
    }
}
