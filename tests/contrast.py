"""Contrast as WCAG 2.2 defines it, for tests: of two colours, and of every text on a page of the dashboard."""

LEAST_TEXT, LEAST_MARK = 4.5, 3.0  # level AA
LIGHT, DARK = "#FFFFFF", "#171614"  # grounds of Streamlit's themes

# texts of a page whose contrast with what lies behind them is too low, with the ratio. Left out are texts over a picture or in a filled
# mark, which have a halo or a ground of their own, those of what cannot be used now, tables, which are a canvas, icons and signs, which are
# marks, and the value of a slider, which stands beside its thumb and not in it
FAINT = """least => {
  const parsed = colour => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return {r, g, b, a}; };
  const over = (top, below) => Object.fromEntries(['r', 'g', 'b'].map(c => [c, top[c] * top.a + below[c] * (1 - top.a)]));
  const channel = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ({r, g, b}) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ratio = (one, two) => { const [l, d] = [luminance(one), luminance(two)].sort((a, b) => b - a); return (l + 0.05) / (d + 0.05); };
  const chain = element => element ? [element, ...chain(element.parentElement)] : [];
  const ground = element => chain(element).reverse().map(e => getComputedStyle(e).backgroundColor).filter(c => c.startsWith('rgb'))
    .reduce((below, colour) => over(parsed(colour), below), {r: 255, g: 255, b: 255});
  const own = element => [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  const skipped = 'canvas, style, script, [disabled], [aria-disabled=true], .textpoint, .bartext, .katex-mathml, .parcoords, .modebar, '
    + '[data-testid=stIconMaterial], [data-testid=stSliderThumbValue]';
  return [...document.querySelectorAll('[data-testid=stApp] *')].filter(element => own(element) && !element.closest(skipped)
    && element.getBoundingClientRect().width > 0 && getComputedStyle(element).visibility !== 'hidden'
    && getComputedStyle(element).textShadow === 'none' && !element.closest('.legend')?.querySelector('.bg[style*="rgb(38, 39, 48)"]'))
  .flatMap(element => {
    const style = getComputedStyle(element), colour = parsed(element.closest('svg.main-svg') ? style.fill : style.color);
    const behind = ground(element);
    colour.a *= chain(element).reduce((product, e) => product * Number(getComputedStyle(e).opacity), 1);
    const found = ratio(over(colour, behind), behind);
    const text = element.textContent.trim();
    return colour.a > 0.02 && found < least && !/^[▲▼●]$/u.test(text) ? [`${text.slice(0, 40)}: ${found.toFixed(2)}`] : [];
  });
}"""


def contrast(one: str, other: str) -> float:
    """The ratio of two colours ``#RRGGBB``, from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    values = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
