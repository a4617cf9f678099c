//! How pulls on several nodes look while they go on: on a terminal a line for each node, with one for each layer while they are few.

use std::collections::BTreeMap;

use rcluster_api::resource::Bytes;
use rcluster_api::wire::v1;

/// More lines than this are not drawn for layers.
const LAYER_LINES_MAX: usize = 24;
const BAR_CELLS: u64 = 20;

/// How far each node is. Draws itself anew over what it drew before.
#[derive(Debug, Default)]
pub struct Board {
    nodes: BTreeMap<String, Vec<v1::ImageLayerProgress>>,
    drawn_lines: usize,
}

impl Board {
    /// A node has come this far; what to write to the terminal.
    pub fn take(&mut self, node: &str, v1::ImageProgress { layers }: v1::ImageProgress) -> String {
        self.nodes.insert(node.to_owned(), layers);
        self.draw()
    }

    /// A node has ended; what to write to the terminal.
    pub fn leave(&mut self, node: &str) -> String {
        self.nodes.remove(node);
        self.draw()
    }

    /// Lines wider than the terminal are cut by it (DECAWM off), so that moving up by lines drawn is right.
    fn draw(&mut self) -> String {
        let with_layers = self.nodes.values().map(|layers| layers.len() + 1).sum::<usize>() <= LAYER_LINES_MAX;
        let mut lines = Vec::new();
        for (node, layers) in &self.nodes {
            let done = layers.iter().filter(|layer| layer.done).count();
            let sum = |bytes: fn(&v1::ImageLayerProgress) -> u64| Bytes(layers.iter().map(bytes).sum()).human();
            lines.push(format!(
                "{node}  {done}/{} layers  {} of {}",
                layers.len(),
                sum(|layer| layer.bytes),
                sum(|layer| layer.bytes_total)
            ));
            if with_layers {
                lines.extend(layers.iter().enumerate().map(|(index, layer)| layer_line(index + 1, layer)));
            }
        }
        let up = if self.drawn_lines > 0 { format!("\x1b[{}A", self.drawn_lines) } else { String::new() };
        self.drawn_lines = lines.len();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        format!("\x1b[?7l{up}\r\x1b[J{text}\x1b[?7h")
    }
}

fn layer_line(number: usize, v1::ImageLayerProgress { bytes, bytes_total, done }: &v1::ImageLayerProgress) -> String {
    let full = if *done { BAR_CELLS } else { BAR_CELLS * bytes.min(bytes_total) / (*bytes_total).max(1) };
    let bar: String = (0..BAR_CELLS).map(|cell| if cell < full { '█' } else { '░' }).collect();
    let word = if *done {
        "done".to_owned()
    } else if bytes >= bytes_total && *bytes_total > 0 {
        "unpacking".to_owned()
    } else {
        Bytes(*bytes).human()
    };
    format!("  layer {number:<3} {bar} {:>9}  {word}", Bytes(*bytes_total).human())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_has_a_line_and_a_node_that_ends_has_none() {
        let layer = |bytes, done| v1::ImageLayerProgress { bytes, bytes_total: 4 << 20, done };
        let mut board = Board::default();
        let drawn = board.take("n1", v1::ImageProgress { layers: vec![layer(4 << 20, true), layer(1 << 20, false)] });
        assert!(drawn.contains("n1  1/2 layers  5 MiB of 8 MiB\n"), "{drawn}");
        assert!(drawn.contains("  layer 1   ████████████████████     4 MiB  done\n"), "{drawn}");
        assert!(drawn.contains("  layer 2   █████░░░░░░░░░░░░░░░     4 MiB  1 MiB\n"), "{drawn}");
        assert_eq!(board.leave("n1"), "\x1b[?7l\x1b[3A\r\x1b[J\x1b[?7h");
    }
}
