//! A gate's condition: an expression of CEL (Common Expression Language, cel-spec) over the facts, bounded so that deciding
//! takes time in proportion to its text.
//!
//! No comprehensions, and no function but those in [`FUNCTIONS`]; only facts that there are; a boolean where that can be told
//! beforehand. What is refused is refused when the policy is made, with line and column.

use std::sync::{Arc, OnceLock};

use cel::common::ast::{Expr, IdedExpr, LiteralValue, SourceInfo, operators};
use cel::{Context, Env, ExecutionError, Program, Value};

use super::facts::{Facts, Kind, NAMES};

/// The longest condition, in bytes (design 7).
pub const MAX_CONDITION: usize = 4096;
/// How deep an expression may be nested (design 7).
pub const MAX_DEPTH: usize = 32;
/// Links of chains (`a.b`, `1 + 2`) in a condition. The parser goes through them one in the other, so that a text which
/// could use up its stack is not even parsed; one that asks for a hundred facts stays below.
const MAX_LINKS: usize = 128;

/// The parser's stack, in bytes: four times what the deepest text that is parsed takes.
const PARSER_STACK: usize = 16 << 20;

/// The functions that may be called, beside the operators: none whose cost is more than linear.
const FUNCTIONS: [(&str, Option<Kind>); 22] = [
    (operators::CONDITIONAL, None),
    (operators::LOGICAL_AND, Some(Kind::Bool)),
    (operators::LOGICAL_OR, Some(Kind::Bool)),
    (operators::LOGICAL_NOT, Some(Kind::Bool)),
    (operators::EQUALS, Some(Kind::Bool)),
    (operators::NOT_EQUALS, Some(Kind::Bool)),
    (operators::LESS, Some(Kind::Bool)),
    (operators::LESS_EQUALS, Some(Kind::Bool)),
    (operators::GREATER, Some(Kind::Bool)),
    (operators::GREATER_EQUALS, Some(Kind::Bool)),
    (operators::IN, Some(Kind::Bool)),
    (operators::ADD, None),
    (operators::SUBSTRACT, None),
    (operators::MULTIPLY, Some(Kind::Number)),
    (operators::DIVIDE, Some(Kind::Number)),
    (operators::NEGATE, Some(Kind::Number)),
    ("contains", Some(Kind::Bool)),
    ("startsWith", Some(Kind::Bool)),
    ("endsWith", Some(Kind::Bool)),
    ("size", Some(Kind::Number)),
    ("timestamp", Some(Kind::Time)),
    ("duration", Some(Kind::Number)),
];

/// Why a text is no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// Longer than [`MAX_CONDITION`].
    #[error("the condition has {0} bytes; {MAX_CONDITION} are taken")]
    TooLong(usize),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("line {line}, column {column}: the condition is nested deeper than {MAX_DEPTH}")]
    TooDeep {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// Something is wrong at a place.
    #[error("line {line}, column {column}: {what}")]
    At {
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What.
        what: String,
    },
}

impl ConditionError {
    /// A stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "condition_too_long",
            Self::TooDeep { .. } => "condition_too_deep",
            Self::At { .. } => "bad_condition",
        }
    }
}

/// A compiled condition.
#[derive(Debug)]
pub struct Condition {
    text: String,
    program: Program,
    asks_owner: bool,
}

/// The functions of CEL, made once: they are the same for every condition.
fn environment() -> Arc<Env> {
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    Arc::clone(ENVIRONMENT.get_or_init(|| Arc::new(Env::stdlib())))
}

impl Condition {
    /// Compiles `text`. Errors: see [`ConditionError`].
    pub fn compile(text: &str) -> Result<Self, ConditionError> {
        if text.len() > MAX_CONDITION {
            return Err(ConditionError::TooLong(text.len()));
        }
        check_nesting(text)?;
        let program = parse(text)?;
        let checker = Checker {
            text,
            source: program.source_info(),
        };
        let kind = checker.check(program.expression(), 1)?;
        if let Some(kind) = kind.filter(|kind| *kind != Kind::Bool) {
            let what = format!(
                "the condition is {}, and must be true or false",
                name_of(kind)
            );
            return Err(checker.at(program.expression(), what));
        }
        let asks_owner = program.references().has_variable("owner");
        Ok(Self {
            text: text.to_owned(),
            program,
            asks_owner,
        })
    }

    /// Whether it asks what the caller keeps here, which has to be counted.
    #[must_use]
    pub const fn asks_owner(&self) -> bool {
        self.asks_owner
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it holds. Errors: a fact is missing, or it fails; in words that depend on condition and facts alone. As CEL
    /// has it, `a || b` holds when one side does, whatever is wrong with the other.
    pub fn holds(&self, facts: &Facts) -> Result<bool, String> {
        let mut context = Context::with_env(environment());
        for (name, value) in facts.values() {
            context.add_variable_from_value(name, value);
        }
        match self.program.execute(&context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(_) => Err("it is neither true nor false".to_owned()),
            Err(ExecutionError::UndeclaredReference(name)) => {
                Err(format!("the fact `{name}` is missing"))
            }
            Err(error) => Err(shortened(&error.to_string())),
        }
    }
}

/// Parses on a stack of its own: the parser takes some 64 KiB a level where it is not optimised, more in all than a worker's
/// thread has left.
fn parse(text: &str) -> Result<Program, ConditionError> {
    let parsing = || {
        environment().compile(text).map_err(|errors| {
            let first = errors.errors.first();
            let (line, column) = first.map_or((1, 1), |error| error.pos);
            let what = first.map_or("not CEL", |error| error.msg.as_str());
            let from_one = |n: isize| usize::try_from(n).unwrap_or(1).max(1);
            ConditionError::At {
                line: from_one(line),
                column: from_one(column),
                what: shortened(what),
            }
        })
    };
    let failed = |what: &str| ConditionError::At {
        line: 1,
        column: 1,
        what: what.to_owned(),
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(PARSER_STACK);
        let parser = thread.spawn_scoped(scope, parsing);
        let parser = parser.map_err(|error| failed(&format!("no thread to parse it: {error}")))?;
        let parsed = parser.join();
        parsed.unwrap_or_else(|_| Err(failed("the parser gave up")))
    })
}

/// Refuses what could nest deeper than a parser's stack before it is parsed: brackets, branches within them, and chains.
fn check_nesting(text: &str) -> Result<(), ConditionError> {
    let (mut links, mut quote, mut escaped) = (0, None, false);
    // Of each bracket that is open, how many branches it has; the outermost is the text itself.
    let mut branches = vec![0usize];
    let (mut line, mut column) = (1, 0);
    for character in text.chars() {
        column += 1;
        if character == '\n' {
            (line, column) = (line + 1, 0);
        }
        match (quote, character) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), close) if open == close => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(character),
            (None, '(' | '[' | '{') => branches.push(0),
            (None, ')' | ']' | '}') if branches.len() > 1 => {
                branches.pop();
            }
            (None, '?') => {
                if let Some(inner) = branches.last_mut() {
                    *inner += 1;
                }
            }
            (None, '.' | '!' | '-' | '+' | '*' | '/' | '%') => links += 1,
            (None, _) => {}
        }
        let depth = branches.len() + branches.iter().sum::<usize>();
        if links > MAX_LINKS || depth > MAX_DEPTH {
            return Err(ConditionError::TooDeep { line, column });
        }
    }
    Ok(())
}

/// Walks an expression once.
struct Checker<'a> {
    text: &'a str,
    source: &'a SourceInfo,
}

impl Checker<'_> {
    /// Of what kind an expression is, where that can be told. Errors: what conditions may not have.
    fn check(&self, node: &IdedExpr, depth: usize) -> Result<Option<Kind>, ConditionError> {
        if depth > MAX_DEPTH {
            let (line, column) = self.place(node);
            return Err(ConditionError::TooDeep { line, column });
        }
        match &node.expr {
            Expr::Literal(literal) => Ok(Some(match literal {
                LiteralValue::Boolean(_) => Kind::Bool,
                LiteralValue::String(_) | LiteralValue::Bytes(_) => Kind::Text,
                LiteralValue::Double(_) | LiteralValue::Int(_) | LiteralValue::UInt(_) => {
                    Kind::Number
                }
                LiteralValue::Null => {
                    return Err(self.at(node, "null: a fact that is missing denies by itself"));
                }
            })),
            Expr::Ident(name) => self.fact(node, name, None).map(Some),
            Expr::Select(select) => {
                let Expr::Ident(root) = &select.operand.expr else {
                    return Err(self.at(
                        node,
                        format!("nothing has a member `{}`", shortened(&select.field)),
                    ));
                };
                let kind = self.fact(node, root, Some(&select.field))?;
                Ok(Some(if select.test { Kind::Bool } else { kind }))
            }
            Expr::List(list) => {
                for element in &list.elements {
                    self.check(element, depth + 1)?;
                }
                Ok(Some(Kind::Texts))
            }
            Expr::Call(call) => {
                let known = FUNCTIONS.iter().find(|(name, _)| *name == call.func_name);
                let Some((name, kind)) = known else {
                    let text = format!("conditions have no `{}`", shortened(&call.func_name));
                    return Err(self.at(node, text));
                };
                if let Some(target) = &call.target {
                    self.check(target, depth + 1)?;
                }
                let mut kinds = Vec::with_capacity(call.args.len());
                for argument in &call.args {
                    kinds.push(self.check(argument, depth + 1)?);
                }
                if matches!(
                    *name,
                    operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT
                ) && let Some((argument, kind)) =
                    call.args.iter().zip(&kinds).find_map(|(a, kind)| {
                        Some((a, (*kind)?)).filter(|(_, kind)| *kind != Kind::Bool)
                    })
                {
                    let text = format!("{} stands where true or false must", name_of(kind));
                    return Err(self.at(argument, text));
                }
                // The branches of `a ? b : c`, or the sides of a sum, say what comes out.
                Ok(kind.or_else(|| kinds.last().copied().flatten()))
            }
            Expr::Comprehension(_) => Err(self.at(
                node,
                "conditions have no all, exists, exists_one, map and filter",
            )),
            Expr::Map(_) | Expr::Struct(_) => Err(self.at(node, "conditions have no maps")),
            Expr::Unspecified => Err(self.at(node, "there is no expression")),
        }
    }

    fn fact(
        &self,
        node: &IdedExpr,
        root: &str,
        member: Option<&str>,
    ) -> Result<Kind, ConditionError> {
        let found = NAMES
            .iter()
            .find(|(name, of, _)| *name == root && *of == member);
        if let Some((_, _, kind)) = found {
            return Ok(*kind);
        }
        let names: Vec<String> = NAMES
            .iter()
            .map(|(name, member, _)| {
                member.map_or_else(|| (*name).to_owned(), |m| format!("{name}.{m}"))
            })
            .collect();
        let asked = member.map_or_else(|| root.to_owned(), |member| format!("{root}.{member}"));
        let what = format!(
            "there is no fact `{}`; there are {}",
            shortened(&asked),
            names.join(", ")
        );
        Err(self.at(node, what))
    }

    fn at(&self, node: &IdedExpr, what: impl Into<String>) -> ConditionError {
        let (line, column) = self.place(node);
        ConditionError::At {
            line,
            column,
            what: what.into(),
        }
    }

    /// Line and column of a node, from 1.
    fn place(&self, node: &IdedExpr) -> (usize, usize) {
        let offset = self
            .source
            .offset_for(node.id)
            .map_or(0, |(start, _)| start as usize);
        let before: String = self.text.chars().take(offset).collect();
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1;
        (line, column)
    }
}

const fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "true or false",
        Kind::Text => "a text",
        Kind::Number => "a number",
        Kind::Time => "a time",
        Kind::Texts => "a list",
    }
}

/// Words of a library, on one line and bounded.
fn shortened(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(200)
        .collect()
}
