//! What to open, as fields or as the flags of the command line.

use crate::{
    Error, Result,
    job::{MachineOptions, MemoryOptions, PairOptions, PromptOptions, told_by_clap, without_environment},
};
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser};

/// What to open: the flags of the command line, with the same defaults and meanings. Environment variables (`TUCO_…`) are
/// not read: a program says itself what it opens.
#[derive(Debug, Clone, Default, Args)]
pub struct SessionOptions {
    #[command(flatten)]
    pub pair: PairOptions,
    #[command(flatten)]
    pub prompts: PromptOptions,
    #[command(flatten)]
    pub machine: MachineOptions,
    #[command(flatten)]
    pub memory: MemoryOptions,
}

#[derive(Parser)]
#[command(name = "tuco", no_binary_name = true, disable_help_flag = true)]
struct Flags {
    #[command(flatten)]
    options: SessionOptions,
}

impl SessionOptions {
    /// Two models, each a directory, a GGUF file, or a Hugging Face id in the local cache; all else as by default.
    pub fn new(base: impl Into<String>, tuned: impl Into<String>) -> Self {
        let pair =
            PairOptions { base: Some(base.into()), tuned: Some(tuned.into()), ..PairOptions::default() };
        Self { pair, ..Self::default() }
    }

    /// Options by the names of their flags, with `-` or `_` (`max_length`, `2k`); those that are on or off take `true` or
    /// `false`.
    ///
    /// # Errors
    /// A usage error for an unknown name and for a value that the command line would refuse, in its words.
    pub fn parse<'a>(options: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut command = without_environment(Flags::command());
        command.build();
        let mut flags = Vec::new();
        for (name, value) in options {
            let name = name.replace('_', "-");
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(name.as_str()));
            let arg = arg.ok_or_else(|| {
                let known: Vec<&str> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
                Error::usage(format!("unknown option {name:?}, expected one of {}", known.join(", ")))
            })?;
            match (arg.get_action(), value) {
                (ArgAction::SetTrue, "true") => flags.push(format!("--{name}")),
                (ArgAction::SetTrue, "false") => {}
                (ArgAction::SetTrue, _) => {
                    return Err(Error::usage(format!("--{name} is {value:?}, expected true or false")));
                }
                _ => flags.push(format!("--{name}={value}")),
            }
        }
        let parsed =
            command.try_get_matches_from(flags).and_then(|matches| Flags::from_arg_matches(&matches));
        parsed.map(|flags| flags.options).map_err(|error| Error::usage(told_by_clap(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Device, DtypeChoice};

    #[test]
    fn options_are_parsed_as_flags_are() {
        let options = SessionOptions::parse([
            ("base", "a"),
            ("tuned", "b"),
            ("dtype", "float32"),
            ("device", "cpu"),
            ("max_batch_tokens", "2k"),
            ("apply-chat-template", "true"),
            ("merge_adapter", "false"),
            ("system_instruction", "--be brief=yes"),
        ])
        .unwrap();
        assert_eq!(options.pair.base.as_deref(), Some("a"));
        assert_eq!((options.pair.dtype, options.machine.device), (DtypeChoice::Float32, Device::Cpu));
        assert_eq!(options.machine.max_batch_tokens, 2000);
        assert!(options.prompts.apply_chat_template && !options.pair.merge_adapter);
        assert_eq!(options.prompts.system_instruction.as_deref(), Some("--be brief=yes"));
    }

    #[test]
    fn defaults_are_those_of_the_flags() {
        let parsed = SessionOptions::parse([("base", "a"), ("tuned", "b")]).unwrap();
        assert_eq!(format!("{parsed:?}"), format!("{:?}", SessionOptions::new("a", "b")));
    }

    #[test]
    fn what_cannot_be_meant_is_told_in_one_sentence() {
        let told =
            |options: &[(&str, &str)]| SessionOptions::parse(options.iter().copied()).unwrap_err().message;
        let models = [("base", "a"), ("tuned", "b")];
        let with = |name, value| told(&[models[0], models[1], (name, value)]);
        assert!(
            with("devise", "cpu").starts_with("unknown option \"devise\", expected one of base, tuned, ")
        );
        assert_eq!(with("merge_adapter", "yes"), "--merge-adapter is \"yes\", expected true or false");
        let device = with("device", "gpu");
        assert!(device.contains("'gpu'") && device.contains("expected auto, cpu"), "{device}");
        assert!(told(&[("base", "a")]).contains("--tuned"), "{}", told(&[("base", "a")]));
        assert!(with("threads", "0").contains("expected 1 to 4096"));
    }
}
