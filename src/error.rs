//! The crate's one error: a kind, which decides the exit code, and a message, which names what is wrong and where.

use std::{fmt, path::Path};

/// What went wrong, as far as a caller or a scheduler has to tell one failure from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A flag, path or input that cannot be meant: missing file, contradictory options.
    Usage,
    /// A checkpoint that is broken or of a kind that is not supported.
    Checkpoint,
    /// Two checkpoints that are not a pair, or a run that does not continue the one on disk.
    Mismatch,
    /// Hidden states or logits overflowed: finite weights that are too large for this prompt; the same call fails again.
    NotFinite,
    /// Reading or writing failed; the same command may work later.
    Io,
    /// The device failed or is not there; the same command may work later or elsewhere.
    Device,
    /// The device's memory does not hold what is computed at once.
    OutOfMemory,
    /// The run was stopped from outside; the same command goes on.
    Interrupted,
    /// The run finished with more bad rows than allowed.
    BadRows,
    /// Rows that are to be merged are not all there.
    Incomplete,
}

/// An error with a message for people. Messages name the file, tensor, line or flag and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    pub fn checkpoint(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Checkpoint, message)
    }

    pub fn mismatch(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Mismatch, message)
    }

    /// What a run that was asked to stop ends with.
    pub fn stopped() -> Self {
        Self::new(ErrorKind::Interrupted, "stopped")
    }

    /// A failed operation on `path`: `verb` completes "cannot … PATH". A usage error where it is not allowed, which trying again
    /// does not change.
    pub fn io(verb: &str, path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Cause;
        let kind = match error.kind() {
            Cause::PermissionDenied | Cause::ReadOnlyFilesystem => ErrorKind::Usage,
            _ => ErrorKind::Io,
        };
        Self::new(kind, format!("cannot {verb} {}: {error}", path.display()))
    }

    /// A file that the user named and that cannot be read. A usage error where the name is at fault, or what lies there; any
    /// other failure may pass, as those of [`Error::io`].
    pub fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Cause;
        let kind = match error.kind() {
            Cause::NotFound
            | Cause::PermissionDenied
            | Cause::IsADirectory
            | Cause::NotADirectory
            | Cause::InvalidFilename
            | Cause::InvalidInput
            | Cause::InvalidData => ErrorKind::Usage,
            _ => ErrorKind::Io,
        };
        Self { kind, ..Self::io("read", path, error) }
    }

    /// The exit code that tells a scheduler what to do: 1 try again, 2 mend the command, 3 look at the error rows
    /// or at what is missing, 42 never try again, 75 run the same command to go on.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::Io | ErrorKind::Device | ErrorKind::OutOfMemory => 1,
            ErrorKind::Usage => 2,
            ErrorKind::BadRows | ErrorKind::Incomplete => 3,
            ErrorKind::Checkpoint | ErrorKind::Mismatch | ErrorKind::NotFinite => 42,
            ErrorKind::Interrupted => 75,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, ErrorKind as Cause};

    fn exit_code(error: io::Error) -> u8 {
        let unreadable = Error::unreadable(Path::new("weights"), &error);
        assert!(unreadable.message.starts_with("cannot read weights: "), "{unreadable}");
        unreadable.exit_code()
    }

    #[test]
    fn what_is_not_allowed_is_not_tried_again() {
        let written = |cause: Cause| Error::io("write", Path::new("out"), &cause.into()).exit_code();
        assert_eq!([Cause::PermissionDenied, Cause::ReadOnlyFilesystem].map(written), [2, 2]);
        assert_eq!([Cause::StorageFull, Cause::Interrupted].map(written), [1, 1]);
    }

    #[test]
    fn only_what_is_named_wrongly_is_wrong_usage() {
        for cause in [
            Cause::NotFound,
            Cause::PermissionDenied,
            Cause::IsADirectory,
            Cause::NotADirectory,
            Cause::InvalidFilename,
            Cause::InvalidInput,
            Cause::InvalidData,
        ] {
            assert_eq!(exit_code(cause.into()), 2, "{cause}");
        }
        for cause in [Cause::StaleNetworkFileHandle, Cause::OutOfMemory, Cause::TimedOut, Cause::Other] {
            assert_eq!(exit_code(cause.into()), 1, "{cause}");
        }
        // EIO, ENOMEM, EMFILE.
        #[cfg(unix)]
        for code in [5, 12, 24] {
            assert_eq!(exit_code(io::Error::from_raw_os_error(code)), 1, "{code}");
        }
    }
}
