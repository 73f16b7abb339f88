//! The pickle of a state dict, as `torch.save` writes it: which tensors there are and where their elements lie. Nothing in it is
//! run: plain values are read over, and tensors that are more than a part of a storage are an error.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

/// The elements that tensors share: `torch.FloatStorage` and the like.
#[derive(Debug, PartialEq)]
pub struct Storage {
    /// `FloatStorage`, `HalfStorage`, …
    pub class: Rc<str>,
    /// The name of its elements in the archive.
    pub key: Rc<str>,
    /// How many elements it has.
    pub length: usize,
}

/// A part of a storage, as `torch._utils._rebuild_tensor_v2` takes it; all in elements.
#[derive(Debug, Clone, PartialEq)]
pub struct StateTensor {
    pub storage: Rc<Storage>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// Tensors by name, in the order of the file.
pub type StateDict = Vec<(Rc<str>, Rc<StateTensor>)>;

/// What stands on the stack. Of what a state dict has not only that there is something is kept, so that nothing nests deeply.
#[derive(Debug, Clone)]
enum Value {
    Integer(i64),
    Text(Rc<str>),
    /// Module and name.
    Global(Rc<str>),
    Tuple(Rc<[Value]>),
    Storage(Rc<Storage>),
    Tensor(Rc<StateTensor>),
    Dict(Rc<RefCell<StateDict>>),
    /// What an unknown call gives: its name.
    Built(Rc<str>),
    Other,
}

/// Dimensions of a tensor at most, and bytes of the name of a class or function.
const MOST_DIMENSIONS: usize = 8;
const LONGEST_NAME: usize = 256;

const NOT_THERE: &str = "has a data.pkl that takes what is not there";
const ENDS_EARLY: &str = "has a data.pkl that ends early";

impl Value {
    fn sizes(&self) -> Option<Vec<usize>> {
        match self {
            Value::Tuple(items) if items.len() <= MOST_DIMENSIONS => items.iter().map(Value::size).collect(),
            _ => None,
        }
    }

    fn size(&self) -> Option<usize> {
        match self {
            Value::Integer(size) => usize::try_from(*size).ok(),
            _ => None,
        }
    }

    fn tuple(items: Vec<Value>) -> Self {
        let nests = |item: &Value| matches!(item, Value::Tuple(items) if items.iter().any(Value::is_tuple));
        let items = items.into_iter().map(|item| if nests(&item) { Value::Other } else { item });
        Value::Tuple(items.collect())
    }

    fn is_tuple(&self) -> bool {
        matches!(self, Value::Tuple(_))
    }
}

/// Reads a state dict.
///
/// # Errors
/// Where in the pickle something stands that no state dict has.
pub fn state_dict(bytes: &[u8]) -> Result<StateDict, String> {
    let mut machine = Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    match machine.run()? {
        Value::Dict(tensors) if !tensors.borrow().is_empty() => Ok(tensors.take()),
        _ => Err("holds no state dict of tensors".into()),
    }
}

/// The stack machine that a pickle is a program of (`pickletools` of Python).
struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Value, String> {
        loop {
            let (at, [opcode]) = (self.at, self.take()?);
            match opcode {
                b'.' => return self.pop(),
                // PROTO, FRAME
                0x80 => drop(self.take::<1>()?),
                0x95 => drop(self.take::<8>()?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'N' | 0x88 | 0x89 => self.stack.push(Value::Other),
                b'G' => {
                    self.take::<8>()?;
                    self.stack.push(Value::Other);
                }
                b'K' => self.push_integer::<1>()?,
                b'M' => self.push_integer::<2>()?,
                b'J' => {
                    let value = i32::from_le_bytes(self.take()?);
                    self.stack.push(Value::Integer(value.into()));
                }
                // LONG1: as many bytes as the first says, the last with the sign.
                0x8a => {
                    let [length] = self.take()?;
                    let bytes = self.slice(length.into())?;
                    let sign = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
                    let byte = |i: usize| bytes.get(i).copied().unwrap_or(sign);
                    let value = i64::from_le_bytes(std::array::from_fn(byte));
                    self.stack.push(if length <= 8 { Value::Integer(value) } else { Value::Other });
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.take()?);
                    self.push_text(length as usize)?;
                }
                0x8c => {
                    let [length] = self.take()?;
                    self.push_text(length.into())?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(global(&module, &name));
                }
                // STACK_GLOBAL
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (module, name) else {
                        return Err(self.odd(at, opcode));
                    };
                    self.stack.push(global(&module, &name));
                }
                b')' => self.stack.push(Value::tuple(Vec::new())),
                0x85..=0x87 => {
                    let items = self.pop_many(usize::from(opcode - 0x84))?;
                    self.stack.push(Value::tuple(items));
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.stack.push(Value::tuple(items));
                }
                b'}' => self.stack.push(Value::Dict(Rc::default())),
                // Lists, with what is appended to them.
                b']' => self.stack.push(Value::Other),
                b'a' => drop(self.pop()?),
                b'e' => drop(self.pop_to_mark()?),
                b's' => {
                    let items = self.pop_many(2)?;
                    self.set_items(items)?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(items)?;
                }
                b'q' => {
                    let [index] = self.take()?;
                    self.remember(index.into())?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.take()?);
                    self.remember(index)?;
                }
                // MEMOIZE
                0x94 => self.remember(self.memo.len() as u32)?,
                b'h' => {
                    let [index] = self.take()?;
                    self.recall(index.into())?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.take()?);
                    self.recall(index)?;
                }
                // BINPERSID
                b'Q' => {
                    let id = self.pop()?;
                    let storage = storage_of(&id).ok_or_else(|| self.odd(at, opcode))?;
                    self.stack.push(Value::Storage(Rc::new(storage)));
                }
                // REDUCE, NEWOBJ: a call, of which only those are understood that state dicts have.
                b'R' | 0x81 => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    self.stack.push(called(&callable, &arguments));
                }
                // BUILD: what an object has besides.
                b'b' => drop(self.pop()?),
                _ => return Err(self.odd(at, opcode)),
            }
        }
    }

    fn odd(&self, at: usize, opcode: u8) -> String {
        format!("has opcode {opcode:#04x} at byte {at} of data.pkl, which no state dict has there")
    }

    fn slice(&mut self, length: usize) -> Result<&[u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).ok_or(ENDS_EARLY)?;
        self.at += length;
        Ok(taken)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.slice(N)?.try_into().expect("so many were taken"))
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.bytes[self.at..].iter().position(|byte| *byte == b'\n');
        let line = self.slice(end.ok_or(ENDS_EARLY)?)?;
        let line = String::from_utf8_lossy(line).into_owned();
        self.take::<1>()?;
        Ok(line)
    }

    fn push_integer<const N: usize>(&mut self) -> Result<(), String> {
        let bytes: [u8; N] = self.take()?;
        let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | i64::from(*byte));
        self.stack.push(Value::Integer(value));
        Ok(())
    }

    fn push_text(&mut self, length: usize) -> Result<(), String> {
        let text = String::from_utf8_lossy(self.slice(length)?).into();
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(|| NOT_THERE.into())
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Value>, String> {
        let rest = self.stack.len().checked_sub(count);
        Ok(self.stack.split_off(rest.ok_or(NOT_THERE)?))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let height = self.marks.pop().filter(|height| *height <= self.stack.len());
        Ok(self.stack.split_off(height.ok_or(NOT_THERE)?))
    }

    /// Puts keys and values into the dict on top of the stack; other objects are read over.
    fn set_items(&mut self, items: Vec<Value>) -> Result<(), String> {
        let top = self.stack.last_mut().ok_or(NOT_THERE)?;
        let Value::Dict(dict) = top else { return Ok(()) };
        for pair in items.chunks_exact(2) {
            match pair {
                [Value::Text(name), Value::Tensor(tensor)] => {
                    dict.borrow_mut().push((name.clone(), tensor.clone()));
                }
                [Value::Text(name), Value::Built(by)] => {
                    return Err(format!("has {name}, which is built by {by}: only plain tensors are read"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn remember(&mut self, index: u32) -> Result<(), String> {
        let top = self.stack.last().ok_or(NOT_THERE)?;
        self.memo.insert(index, top.clone());
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let value = self.memo.get(&index).ok_or(NOT_THERE)?;
        self.stack.push(value.clone());
        Ok(())
    }
}

/// `("storage", class, key, device, length)`
fn storage_of(id: &Value) -> Option<Storage> {
    let Value::Tuple(parts) = id else { return None };
    match &parts[..] {
        [Value::Text(kind), Value::Global(class), Value::Text(key), Value::Text(_), length]
            if **kind == *"storage" =>
        {
            let class = class.split(' ').next_back()?.into();
            Some(Storage { class, key: key.clone(), length: length.size()? })
        }
        _ => None,
    }
}

/// What a call gives.
fn called(callable: &Value, arguments: &Value) -> Value {
    let (Value::Global(name), Value::Tuple(arguments)) = (callable, arguments) else { return Value::Other };
    let found = match &**name {
        "collections OrderedDict" => Some(Value::Dict(Rc::default())),
        "torch._utils _rebuild_tensor_v2" => tensor_of(arguments),
        "torch._utils _rebuild_parameter" | "torch._utils _rebuild_parameter_with_state" => {
            arguments.first().cloned()
        }
        _ => None,
    };
    found.unwrap_or_else(|| Value::Built(name.clone()))
}

/// A class or function, by its module and name.
fn global(module: &str, name: &str) -> Value {
    if module.len() + name.len() > LONGEST_NAME {
        return Value::Other;
    }
    Value::Global(format!("{module} {name}").into())
}

/// Of storage, offset, shape and strides.
fn tensor_of(arguments: &[Value]) -> Option<Value> {
    let [Value::Storage(storage), offset, shape, strides, ..] = arguments else { return None };
    let (offset, shape, strides) = (offset.size()?, shape.sizes()?, strides.sizes()?);
    Some(Value::Tensor(Rc::new(StateTensor { storage: storage.clone(), offset, shape, strides })))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dict with the same tensor, and what is `done` with it, under two names.
    fn dict_of(done: &[u8]) -> Result<StateDict, String> {
        let storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ";
        let (function, numbers) =
            (b"ctorch._utils\n_rebuild_tensor_v2\n(", b"K\0(K\x02K\x03t(K\x03K\x01tNNtR");
        let tensor = [&function[..], storage, numbers, done].concat();
        state_dict(&[b"\x80\x02}(X\x01\0\0\0a", &tensor[..], b"X\x01\0\0\0b", &tensor, b"u."].concat())
    }

    #[test]
    fn tensors_are_read_and_what_builds_on_them_is_refused() {
        let storage = Rc::new(Storage { class: "FloatStorage".into(), key: "0".into(), length: 6 });
        let tensor = Rc::new(StateTensor { storage, offset: 0, shape: vec![2, 3], strides: vec![3, 1] });
        let expected: StateDict = vec![("a".into(), tensor.clone()), ("b".into(), tensor)];
        assert_eq!(dict_of(b"").unwrap(), expected);
        // A parameter, as `torch._utils._rebuild_parameter(tensor, …)`: the tensor is there already, so the call takes it from the memo.
        let call = |name: &str| [b"q\x000c", name.as_bytes(), b"\nh\0\x85R"].concat();
        assert_eq!(dict_of(&call("torch._utils\n_rebuild_parameter")).unwrap(), expected);
        assert_eq!(dict_of(&call("torch._utils\n_rebuild_parameter_with_state")).unwrap(), expected);
        let problem = dict_of(&call("os\nsystem")).unwrap_err();
        assert_eq!(problem, "has a, which is built by os system: only plain tensors are read");
    }
}
