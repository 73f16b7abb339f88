//! The C interface of tuco; `include/tuco.h` documents it, and a test holds the two together.

use std::{
    cell::RefCell,
    ffi::{CStr, CString, c_char, c_int},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    slice::from_raw_parts,
};
use tuco::{
    Error, Result, Session, SessionOptions,
    engine::Score,
    prompt::{ContentRef, RowError},
    session::Call,
};

/// `TUCO_FAILED`: also what panics are.
const FAILED: c_int = 1;

#[repr(C)]
pub struct TucoOption {
    name: *const c_char,
    value: *const c_char,
}

#[repr(C)]
pub struct TucoScore {
    tuco: f64,
    ptc_l1: f64,
    ftc_l1: f64,
    beta: f64,
    n_tokens: usize,
    truncated: c_int,
}

/// What is scored.
struct Prompt<'a> {
    token_ids: &'a [u32],
    truncated: bool,
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
    static WARNINGS: RefCell<CString> = RefCell::default();
}

type Text = std::thread::LocalKey<RefCell<CString>>;

fn remember(text: &'static Text, message: &str) {
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    text.with(|text| *text.borrow_mut() = message);
}

fn remembered(text: &'static Text) -> *const c_char {
    text.with(|text| text.borrow().as_ptr())
}

/// Runs what a function does; its status, and the message where it is not 0.
fn guarded(work: impl FnOnce() -> Result<()>) -> c_int {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            remember(&LAST_ERROR, &error.message);
            c_int::from(error.exit_code())
        }
        Err(_) => {
            remember(&LAST_ERROR, "a bug in tuco: it panicked, standard error says where");
            FAILED
        }
    }
}

/// # Safety
/// `pointer` is null, or points to `count` values.
unsafe fn list<'a, T>(name: &str, pointer: *const T, count: usize) -> Result<&'a [T]> {
    match (pointer.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Error::usage(format!("{name} is NULL, expected {count} of them"))),
        // SAFETY: the caller's.
        (false, _) => Ok(unsafe { from_raw_parts(pointer, count) }),
    }
}

/// # Safety
/// `pointer` is null, or points to text that ends with a 0.
unsafe fn text<'a>(name: &str, pointer: *const c_char) -> Result<&'a str> {
    if pointer.is_null() {
        return Err(Error::usage(format!("{name} is NULL, expected text")));
    }
    // SAFETY: the caller's.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|error| Error::usage(format!("{name} is not UTF-8: {error}")))
}

/// # Safety
/// `session` is null, or comes from [`tuco_open`] and was not closed.
unsafe fn opened<'a>(session: *const Session) -> Result<&'a Session> {
    // SAFETY: the caller's.
    unsafe { session.as_ref() }.ok_or_else(|| Error::usage("session is NULL, expected what tuco_open gave"))
}

/// What comes of a prompt; what is wrong with it names it.
fn of_prompt<T>((index, outcome): (usize, Result<T, RowError>)) -> Result<T> {
    outcome.map_err(|error| {
        let error = Error::from(error);
        Error::new(error.kind, format!("prompt {index}: {}", error.message))
    })
}

/// # Safety
/// `scores` points to room for as many as there are prompts.
unsafe fn write(
    prompts: &[Prompt<'_>],
    session: &Session,
    call: &Call,
    scores: *mut TucoScore,
) -> Result<()> {
    if scores.is_null() && !prompts.is_empty() {
        return Err(Error::usage(format!("scores is NULL, expected room for {}", prompts.len())));
    }
    let ids: Vec<&[u32]> = prompts.iter().map(|prompt| prompt.token_ids).collect();
    let found = session.score(&ids, &|_| call.go_on())?.into_iter().enumerate();
    let found: Vec<Score> = found.map(of_prompt).collect::<Result<_>>()?;
    for (index, (score, prompt)) in found.iter().zip(prompts).enumerate() {
        let (last, n_tokens, truncated) =
            (score.last(), prompt.token_ids.len(), c_int::from(prompt.truncated));
        let (tuco, beta) = (score.tuco(), score.beta());
        let score = TucoScore { tuco, ptc_l1: last.ptc, ftc_l1: last.ftc, beta, n_tokens, truncated };
        // SAFETY: there is room, says the caller.
        unsafe { scores.add(index).write(score) };
    }
    Ok(())
}

/// # Safety
/// `options` is null, or points to `count` options of texts that end with a 0; `session` is null, or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tuco_open(
    options: *const TucoOption,
    count: usize,
    session: *mut *mut Session,
) -> c_int {
    guarded(|| {
        if session.is_null() {
            return Err(Error::usage("session is NULL, expected where to put it"));
        }
        // SAFETY: the caller's.
        unsafe { session.write(ptr::null_mut()) };
        let mut parsed = Vec::new();
        // SAFETY: the caller's.
        for option in unsafe { list("options", options, count)? } {
            // SAFETY: the caller's.
            let name = unsafe { text("the name of an option", option.name)? };
            // SAFETY: the caller's.
            parsed.push((name, unsafe { text(name, option.value)? }));
        }
        let opened = Session::open(&SessionOptions::parse(parsed)?)?;
        // SAFETY: the caller's.
        unsafe { session.write(Box::into_raw(Box::new(opened))) };
        Ok(())
    })
}

/// # Safety
/// `session` is null, or comes from [`tuco_open`] and was not closed; `prompts` points to `count` texts that end with a 0,
/// `scores` to room for as many.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tuco_score_text(
    session: *const Session,
    prompts: *const *const c_char,
    count: usize,
    scores: *mut TucoScore,
) -> c_int {
    guarded(|| {
        // SAFETY: the caller's.
        let session = unsafe { opened(session)? };
        let call = session.begin();
        let mut rows = Vec::new();
        // SAFETY: the caller's.
        for (index, prompt) in unsafe { list("prompts", prompts, count)? }.iter().enumerate() {
            // SAFETY: the caller's.
            rows.push(ContentRef::Prompt(unsafe { text(&format!("prompt {index}"), *prompt)? }));
        }
        let encoded =
            session.encode(&rows)?.into_iter().enumerate().map(of_prompt).collect::<Result<Vec<_>>>()?;
        let prompts = encoded.iter();
        let prompts =
            prompts.map(|prompt| Prompt { token_ids: &prompt.token_ids, truncated: prompt.truncated });
        // SAFETY: the caller's.
        unsafe { write(&prompts.collect::<Vec<_>>(), session, &call, scores) }
    })
}

/// # Safety
/// `session` is null, or comes from [`tuco_open`] and was not closed; `lengths` points to `count` numbers, `token_ids` to as
/// many ids as they sum up to, `scores` to room for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tuco_score_tokens(
    session: *const Session,
    token_ids: *const u32,
    lengths: *const usize,
    count: usize,
    scores: *mut TucoScore,
) -> c_int {
    guarded(|| {
        // SAFETY: the caller's.
        let session = unsafe { opened(session)? };
        let call = session.begin();
        // SAFETY: the caller's.
        let lengths = unsafe { list("lengths", lengths, count)? };
        let total = lengths.iter().try_fold(0usize, |sum, length| sum.checked_add(*length));
        let total = total.ok_or_else(|| Error::usage("lengths: their sum is larger than memory"))?;
        // SAFETY: the caller's.
        let mut rest = unsafe { list("token_ids", token_ids, total)? };
        let mut prompts = Vec::with_capacity(lengths.len());
        for length in lengths {
            let (token_ids, more) = rest.split_at(*length);
            prompts.push(Prompt { token_ids, truncated: false });
            rest = more;
        }
        // SAFETY: the caller's.
        unsafe { write(&prompts, session, &call, scores) }
    })
}

/// # Safety
/// `session` is null, or comes from [`tuco_open`] and was not closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tuco_cancel(session: *const Session) {
    // SAFETY: the caller's.
    if let Some(session) = unsafe { session.as_ref() } {
        guarded(|| {
            session.cancel();
            Ok(())
        });
    }
}

/// # Safety
/// `session` is null, or comes from [`tuco_open`] and was not closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tuco_take_warnings(session: *const Session) -> *const c_char {
    remember(&WARNINGS, "");
    // SAFETY: the caller's.
    if let Some(session) = unsafe { session.as_ref() } {
        guarded(|| {
            remember(&WARNINGS, &session.take_warnings().join("\n"));
            Ok(())
        });
    }
    remembered(&WARNINGS)
}

/// # Safety
/// `session` is null, or comes from [`tuco_open`], was not closed, and no other thread uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tuco_close(session: *mut Session) {
    if !session.is_null() {
        // SAFETY: the caller's.
        guarded(|| {
            drop(unsafe { Box::from_raw(session) });
            Ok(())
        });
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn tuco_last_error() -> *const c_char {
    remembered(&LAST_ERROR)
}

#[unsafe(no_mangle)]
pub extern "C" fn tuco_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = include_str!("../../include/tuco.h");

    /// What is between the first `start` and the `end` after it.
    fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
        let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("there is no {start:?}"));
        rest.split_once(end).unwrap_or_else(|| panic!("there is no {end:?} after {start:?}")).0
    }

    /// Names before the commas or semicolons that `separator` is.
    fn names(list: &str, separator: char) -> Vec<String> {
        let last_word =
            |part: &str| part.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().map(String::from);
        list.split(separator)
            .map(|part| part.lines().filter(|line| !line.trim_start().starts_with("/*")).collect::<String>())
            .filter_map(|part| last_word(part.trim()))
            .filter(|name| !name.is_empty() && name != "void")
            .collect()
    }

    #[test]
    fn the_header_declares_what_is_exported() {
        let source = between(include_str!("lib.rs"), "use std", "#[cfg(test)]\nmod tests");
        // A pointer's star stands before the name.
        let header = HEADER.replace('*', "* ");
        let mut exported = 0;
        for function in source.split("#[unsafe(no_mangle)]").skip(1) {
            let name = between(function, "fn ", "(");
            let parameters =
                between(function, "(", ")").split(',').filter_map(|parameter| parameter.split_once(':'));
            let parameters: Vec<String> = parameters.map(|(name, _)| name.trim().into()).collect();
            let declared = names(between(&header, &format!(" {name}("), ");"), ',');
            assert_eq!(declared, parameters, "{name}");
            exported += 1;
        }
        let in_header = HEADER.lines().filter(|line| line.starts_with("TUCO_API ")).count();
        assert_eq!((exported, in_header), (8, 8));
    }

    #[test]
    fn the_header_has_the_fields_in_their_order() {
        let source = include_str!("lib.rs");
        for (rust, c) in [("TucoOption", "tuco_option"), ("TucoScore", "tuco_score")] {
            let fields = between(source, &format!("pub struct {rust} {{"), "}").lines();
            let fields: Vec<&str> = fields.filter_map(|line| Some(line.trim().split_once(':')?.0)).collect();
            assert_eq!(names(between(HEADER, &format!("typedef struct {c} {{"), "}"), ';'), fields);
        }
    }

    #[test]
    fn statuses_are_exit_codes() {
        use tuco::ErrorKind::{Checkpoint, Device, Interrupted, Io, Mismatch, NotFinite, OutOfMemory, Usage};
        for (kinds, name) in [
            (&[Io, Device, OutOfMemory][..], "TUCO_FAILED"),
            (&[Usage], "TUCO_USAGE"),
            (&[Checkpoint, Mismatch, NotFinite], "TUCO_WRONG_PAIR"),
            (&[Interrupted], "TUCO_CANCELLED"),
        ] {
            for kind in kinds {
                let code = Error::new(*kind, "").exit_code();
                assert!(HEADER.contains(&format!("{name} = {code},")), "{name} is not {code}");
            }
        }
    }

    #[test]
    fn null_and_text_of_other_encodings_are_refused() {
        let told = || unsafe { CStr::from_ptr(tuco_last_error()) }.to_str().unwrap().to_owned();
        let mut session = ptr::null_mut();
        unsafe {
            assert_eq!(tuco_open(ptr::null(), 1, &raw mut session), 2);
            assert_eq!(told(), "options is NULL, expected 1 of them");
            assert_eq!(tuco_open(ptr::null(), usize::MAX, &raw mut session), 2);
            assert_eq!(tuco_open(ptr::null(), 0, ptr::null_mut()), 2);
            assert!(told().starts_with("session is NULL"));
            let option =
                |name: &'static CStr, value: *const c_char| TucoOption { name: name.as_ptr(), value };
            assert_eq!(tuco_open(&option(c"base", ptr::null()), 1, &raw mut session), 2);
            assert_eq!(told(), "base is NULL, expected text");
            assert_eq!(tuco_open(&option(c"base", c"\xff".as_ptr()), 1, &raw mut session), 2);
            assert!(told().starts_with("base is not UTF-8"));
            assert!(session.is_null());
            assert_eq!(tuco_score_text(session, ptr::null(), 0, ptr::null_mut()), 2);
            assert!(told().starts_with("session is NULL"));
            tuco_cancel(session);
            assert_eq!(CStr::from_ptr(tuco_take_warnings(session)), c"");
            tuco_close(session);
        }
    }
}
