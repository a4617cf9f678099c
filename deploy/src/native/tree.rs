//! A YAML document as a tree in which every key and value knows its place.
//!
//! In: text. Out: one tree for each document, anchors and merge keys resolved, or the first problem. Duplicate keys, keys that are not
//! scalars, unknown tags, cycles, and documents that grow beyond the limits are refused. Never guesses a scalar's type: that is the reader's.

use std::collections::BTreeMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};

use super::error::{Position, Problem};

/// Deepest nesting.
const DEPTH_MAX: usize = 64;
/// Most nodes of one file with every alias counted as often as it is used, so that a few lines cannot become gigabytes.
const NODES_MAX: usize = 200_000;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub position: Position,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// `plain`: neither quoted nor tagged as text, so that it may be a number, a truth value or nothing.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Rc<Node>>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub key_position: Position,
    pub value: Rc<Node>,
}

impl Node {
    /// The entry of a mapping with this key.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            Value::Scalar { .. } | Value::List(_) => None,
        }
    }

    /// Whether the value is left out, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The value at a path such as `containers[0].image`, or the last one on the way to it that exists.
    pub(super) fn locate(&self, path: &str) -> Position {
        let mut node = self;
        let mut position = self.position;
        for step in path.split('.').flat_map(|part| part.split('[')) {
            let next = match (step.strip_suffix(']'), &node.value) {
                (Some(index), Value::List(items)) => {
                    index.parse::<usize>().ok().and_then(|index| items.get(index)).map(|item| (item.position, item))
                }
                (Some(_), Value::Scalar { .. } | Value::Map(_)) => None,
                (None, _) => node.entry(step).map(|entry| (entry.value.position, &entry.value)),
            };
            let Some((at, found)) = next else { break };
            (position, node) = (at, found);
        }
        position
    }
}

/// Reads every document of a file.
pub(super) fn documents(text: &str) -> Result<Vec<Rc<Node>>, Problem> {
    let mut reader = Reader { parser: Parser::new_from_str(text), anchors: BTreeMap::new(), nodes: 0 };
    let mut documents = Vec::new();
    loop {
        let (event, _) = reader.next()?;
        match event {
            Event::StreamEnd => return Ok(documents),
            Event::DocumentStart(_) => {
                reader.anchors.clear();
                let (event, span) = reader.next()?;
                documents.push(reader.node(event, span, 0)?.0);
            }
            _ => {}
        }
    }
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    /// Each anchor's node with the number of nodes in it.
    anchors: BTreeMap<usize, (Rc<Node>, usize)>,
    nodes: usize,
}

fn position(span: Span) -> Position {
    Position { line: span.start.line(), column: span.start.col() + 1 }
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let at = Position { line: error.marker().line(), column: error.marker().col() + 1 };
                Err(Problem::new(at, format!("not YAML: {}", error.info()), ""))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    /// The node that begins with `event`, and how many nodes it holds.
    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<(Rc<Node>, usize), Problem> {
        let at = position(span);
        if depth > DEPTH_MAX {
            return Err(Problem::new(at, format!("nested deeper than {DEPTH_MAX} levels"), ""));
        }
        let before = self.nodes;
        self.count(1, at)?;
        let (value, anchor) = match event {
            Event::Alias(id) => {
                let Some((node, size)) = self.anchors.get(&id).cloned() else {
                    return Err(Problem::new(at, "alias of an anchor that is not yet complete", "an anchor cannot hold itself"));
                };
                self.count(size, at)?;
                return Ok((node, size));
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !is_text_tag(tag.as_deref(), at)?;
                (Value::Scalar { text: text.into_owned(), plain }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                is_text_tag(tag.as_deref(), at)?;
                (Value::List(self.list(depth)?), anchor)
            }
            Event::MappingStart(anchor, tag) => {
                is_text_tag(tag.as_deref(), at)?;
                (Value::Map(self.map(depth)?), anchor)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(Problem::new(at, "not YAML: the document ends within a value", "")),
        };
        let node = Rc::new(Node { position: at, value });
        let size = self.nodes - before;
        if anchor != 0 {
            self.anchors.insert(anchor, (Rc::clone(&node), size));
        }
        Ok((node, size))
    }

    fn count(&mut self, nodes: usize, at: Position) -> Result<(), Problem> {
        self.nodes += nodes;
        if self.nodes > NODES_MAX {
            return Err(Problem::new(
                at,
                format!("more than {NODES_MAX} values in one file, aliases counted as often as they are used"),
                "",
            ));
        }
        Ok(())
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Rc<Node>>, Problem> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span, depth + 1)?.0),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let (key_node, _) = self.node(event, span, depth + 1)?;
            let at = position(span);
            let Value::Scalar { text: key, plain } = &key_node.value else {
                return Err(Problem::new(at, "a key must be a word, not a list or a mapping", ""));
            };
            let (event, span) = self.next()?;
            let (value, _) = self.node(event, span, depth + 1)?;
            if *plain && key == "<<" {
                merge(&value, &mut merged)?;
                continue;
            }
            if let Some(first) = entries.iter().find(|entry| entry.key == *key) {
                return Err(Problem::new(
                    at,
                    format!("key {key:?} stands twice in one mapping, first in line {}", first.key_position.line),
                    "keep one of them",
                ));
            }
            entries.push(Entry { key: key.clone(), key_position: at, value });
        }
        for entry in merged {
            if !entries.iter().any(|own| own.key == entry.key) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }
}

/// Adds what `<<: value` brings: a mapping's entries, or those of each mapping in a list; the first to name a key wins.
fn merge(value: &Node, merged: &mut Vec<Entry>) -> Result<(), Problem> {
    match &value.value {
        Value::Map(entries) => {
            for entry in entries {
                if !merged.iter().any(|earlier| earlier.key == entry.key) {
                    merged.push(entry.clone());
                }
            }
            Ok(())
        }
        Value::List(items) if items.iter().all(|item| matches!(item.value, Value::Map(_))) => {
            items.iter().try_for_each(|item| merge(item, merged))
        }
        Value::List(_) | Value::Scalar { .. } => {
            Err(Problem::new(value.position, "the merge key << takes a mapping or a list of mappings", ""))
        }
    }
}

/// Whether a tag says that the value is text; refuses tags of no known meaning.
fn is_text_tag(tag: Option<&Tag>, at: Position) -> Result<bool, Problem> {
    let Some(tag) = tag else { return Ok(false) };
    match tag.suffix.as_str() {
        _ if !tag.is_yaml_core_schema() => {}
        "str" => return Ok(true),
        "int" | "float" | "bool" | "null" | "map" | "seq" => return Ok(false),
        _ => {}
    }
    Err(Problem::new(at, format!("tag {tag} has no meaning here"), "remove it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(node: &Node) -> String {
        match &node.value {
            Value::Scalar { text, plain } => {
                if *plain {
                    text.clone()
                } else {
                    format!("{text:?}")
                }
            }
            Value::List(items) => format!("[{}]", items.iter().map(|item| show(item)).collect::<Vec<_>>().join(" ")),
            Value::Map(entries) => {
                let entries = entries.iter().map(|entry| format!("{}@{}={}", entry.key, entry.key_position, show(&entry.value)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(" "))
            }
        }
    }

    fn check(text: &str, expected: &str) {
        let found = match documents(text) {
            Ok(documents) => documents.iter().map(|document| show(document)).collect::<Vec<_>>().join(" --- "),
            Err(problem) => problem.in_file("f").to_string(),
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn documents_lists_and_quotes() {
        check("a: 1\nb: '2'\n---\n- x\n- \"y\"\n", "{a@1:1=1 b@2:1=\"2\"} --- [x \"y\"]");
        check("", "");
        check("a: !!str 5\nb:\n", "{a@1:1=\"5\" b@2:1=}");
        check("a: |\n  two\n  lines\n", "{a@1:1=\"two\\nlines\\n\"}");
    }

    #[test]
    fn anchors_and_merge_keys() {
        check("x: &a {k: 1, l: 2}\ny:\n  <<: *a\n  k: 3\n", "{x@1:1={k@1:8=1 l@1:14=2} y@2:1={k@4:3=3 l@1:14=2}}");
        check(
            "a: &a {k: 1}\nb: &b {k: 2, m: 3}\nc: {<<: [*a, *b]}\n",
            "{a@1:1={k@1:8=1} b@2:1={k@2:8=2 m@2:14=3} c@3:1={k@1:8=1 m@2:14=3}}",
        );
        check("a:\n  <<: 5\n", "f:2:7: the merge key << takes a mapping or a list of mappings");
    }

    #[test]
    fn what_is_refused() {
        check("a: 1\nb:\n  c: 1\n  c: 2\n", "f:4:3: key \"c\" stands twice in one mapping, first in line 3; keep one of them");
        check("{[a]: 1}", "f:1:2: a key must be a word, not a list or a mapping");
        check("a: !thing 1\n", "f:1:4: tag !thing has no meaning here; remove it");
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..8 {
            let previous = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
        }
        let problem = documents(&bomb).unwrap_err();
        assert_eq!(problem.message, "more than 200000 values in one file, aliases counted as often as they are used");
        let deep = "[".repeat(100) + &"]".repeat(100);
        assert_eq!(documents(&deep).unwrap_err().message, "nested deeper than 64 levels");
    }

    #[test]
    fn a_path_is_located_as_far_as_it_exists() {
        let document = &documents("containers:\n  - image: a\n    env: {A: b}\n  - image: c\n").unwrap()[0];
        for (path, expected) in [
            ("containers", "2:3"),
            ("containers[1].image", "4:12"),
            ("containers[0].env", "3:10"),
            ("containers[1].name", "4:5"),
            ("replicas", "1:1"),
        ] {
            assert_eq!(document.locate(path).to_string(), expected, "{path}");
        }
    }
}
